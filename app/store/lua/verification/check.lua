-- Check a code: it exists, is not final, count, compare, consume - in one step, so that of N right ones just one verifies.
--
-- By id the code is compared with the live codes of that verification; by phone with those of all pending verifications of
-- the client, phone and purpose. A right one verifies its own. A wrong one counts against the latest, and for the phone
-- once for each code that it was compared with.
--
-- KEYS    1 record, or phone where ARGV[2] is given   2… sorted sets of further limits of failed checks
--         and last the stream of events, if ARGV[4] says so
-- ARGV    1 client   2 purpose, where verifications are to be found by phone, else ''   3 token of this check
--         4 1 if the client has a webhook, else 0   5 retry digest, or ''   6 digest of the address, or ''
--         7 failed checks of a phone allowed, 8 from one address, 9 in how many ms
--         10 length of the code   11 number of candidates, and they: code digests…
--         (none: no code was given, and the question is whether the person has dialled the number of a reverse call)
--         then for each of KEYS 2…: name, failed checks allowed, in how many ms
-- RETURN  {'verified', rest of the id, {failed checks left of each limit…}, purpose, phone, 1 if it is a test, else 0}
--         {'verified_again', …the same}                    the check that verified it, repeated
--         {'wrong', rest of the id, {…}, checks left}
--         {'waiting', rest of the id, {}, checks left}     without a code: not yet
--         {'code_needed' | 'no_code_needed'}               it is no reverse call, or it is one
--         {'other_length', {lengths of the live codes…}}   no live code is as long
--         {'exhausted', rest of the id, {…}, ms to wait}   locked by this check
--         {'locked', ms to wait}                           locked before
--         {'limited', name of the limit, ms to wait}
--         {'not_found' | 'verified_before' | 'canceled_before'}

local client, purpose, token = ARGV[1], ARGV[2], ARGV[3]
local events = ARGV[4] == '1' and KEYS[#KEYS] or nil
local retry_digest, address = ARGV[5], ARGV[6]
local failed_allowed, failed_share, failed_period = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
local code_length = ARGV[10]

local candidates, limits = {}, {}
for i = 1, ARGV[11] do
  candidates[i] = ARGV[11 + i]
end
for at = 12 + #candidates, #ARGV, 3 do
  limits[#limits + 1] = {key = KEYS[#limits + 2], name = ARGV[at], count = tonumber(ARGV[at + 1]), period = ARGV[at + 2]}
end

-- Find the verifications, the latest first.
local found = {}
if purpose == '' then
  found[1] = {key = KEYS[1], record = load(KEYS[1])}
else
  for rest in (redis.call('HGET', KEYS[1], client .. ':' .. purpose) or ''):gmatch('%x+') do
    local key = record_key(KEYS[1], rest)
    table.insert(found, 1, {key = key, record = load(key)})
  end
end
local latest, pending, live = nil, {}, {}
for _, it in ipairs(found) do
  if it.record.c == client then
    latest = latest or it
    if not it.record.s then
      pending[#pending + 1] = it
    elseif retry_digest ~= '' and it.record.j == retry_digest then
      return {'verified_again', rest_of_id(it.key), {}, it.record.u, it.record.p, it.record.z and 1 or 0}
    end
  end
end

local now = now_ms()
if not latest then
  return {'not_found'}
elseif #pending == 0 then
  if latest.record.s == 'locked' then
    return {'locked', until_next_call(latest.key, latest.record, now)}
  end
  return {latest.record.s .. '_before'}
end
latest = pending[1]
local key, record = latest.key, latest.record

local function verify(it, left)
  redis.call('HSET', it.key, 's', 'verified')
  if retry_digest ~= '' then
    redis.call('HSET', it.key, 'j', retry_digest)
  end
  drop_codes(it.key, it.record)
  tell(it.key, 'verification.verified', events)
  return {'verified', rest_of_id(it.key), left, it.record.u, it.record.p, it.record.z and 1 or 0}
end

local function is_live(it, number)
  return it.record['x' .. number] and tonumber(it.record['x' .. number]) > now
end

local is_without_code = record.h == 'reverse_call' and not record.z
if #candidates == 0 then
  if not is_without_code then
    return {'code_needed'}
  elseif record['k' .. record.n] and is_live(latest, record.n) then
    return verify(latest, {})
  end
  return {'waiting', rest_of_id(key), {}, tonumber(record.g)}
elseif is_without_code then
  return {'no_code_needed'}
end

-- A code of another length than any live one is none: it was mistyped, and costs nothing.
local lengths, is_as_long = {}, false
for _, it in ipairs(pending) do
  for number = 1, it.record.n do
    if it.record['d' .. number] and is_live(it, number) then
      live[#live + 1] = {of = it, number = number, digest = it.record['d' .. number]}
      lengths[#live] = tonumber(it.record['l' .. number])
      is_as_long = is_as_long or it.record['l' .. number] == code_length
    end
  end
end
if #live > 0 and not is_as_long then
  return {'other_length', lengths}
end

-- For the phone it counts once for each code: else whoever has three codes made before guessing would be three times as
-- lucky on the same budget.
local comparisons = math.max(1, #live)
local phone_key = record_key(key, 'p:' .. record.q)
local failed = recent(redis.call('HGET', phone_key, 'b'), now, failed_period)
local left = {}
if not record.z then
  local inside, wait = used(failed, now, math.max(1, failed_allowed - comparisons + 1), failed_period)
  if wait > 0 then
    return {'limited', 'failed_checks_per_phone', wait}
  end
  left[1] = failed_allowed - inside
  if address ~= '' then
    local own = of_address(failed, address)
    inside, wait = used(own, now, math.max(1, failed_share - comparisons + 1), failed_period)
    if wait > 0 then
      return {'limited', 'failed_checks_per_phone_and_address', wait}
    end
  end
  for _, limit in ipairs(limits) do
    inside, wait = used_of_set(limit.key, now, limit.count, limit.period)
    if wait > 0 then
      return {'limited', limit.name, wait}
    end
    left[#left + 1] = limit.count - inside
  end
end

for _, candidate in ipairs(candidates) do
  for _, code in ipairs(live) do
    if held_digest(code.of.key, candidate) == code.digest then
      -- Whoever knows the code has heard it, whatever the provider has told of the call so far.
      if STAGE[code.of.record['t' .. code.number]] < STAGE.answered then
        redis.call('HSET', code.of.key, 't' .. code.number, 'answered')
      end
      return verify(code.of, left)
    end
  end
end

if not record.z then
  for _ = 1, comparisons do
    failed[#failed + 1] = {at = now, address = address}
  end
  left[1] = math.max(0, failed_allowed - #failed)
  redis.call('HSET', phone_key, 'b', write_log(failed))
  keep_until(phone_key, now + failed_period)
  for i, limit in ipairs(limits) do
    left[i + 1] = left[i + 1] - 1
    count_in_set(limit.key, now, token, limit.period)
  end
end

local checks_left = record.g - redis.call('HINCRBY', key, 'b', 1)
if checks_left > 0 then
  tell(key, nil, events)
  return {'wrong', rest_of_id(key), left, checks_left}
end
redis.call('HSET', key, 's', 'locked')
drop_codes(key, record)
tell(key, 'verification.locked', events)
return {'exhausted', rest_of_id(key), left, until_next_call(key, record, now)}
