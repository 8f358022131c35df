-- Check a code: it exists, is not final, count, compare, consume - in one step, so that of N right ones just one verifies.
--
-- KEYS    1 record, or phone where ARGV[2] is given   2… sorted sets of further limits of failed checks
--         and last the stream of events, if ARGV[4] says so
-- ARGV    1 client   2 purpose, where the verification is to be found by phone, else ''   3 token of this check
--         4 1 if the client has a webhook, else 0   5 length of the code   6 number of candidates, and they: code digests…
--         (none: no code was given, and the question is whether the person has dialled the number of a reverse call)
--         for the phone, then for each of KEYS 2…: name, failed checks allowed, in how many ms
-- RETURN  {'verified', rest of the id, {failed checks left of each limit…}, purpose, phone, 1 if it is a test, else 0}
--         {'wrong', rest of the id, {…}, checks left}
--         {'waiting', rest of the id, {}, checks left}     without a code: not yet
--         {'code_needed' | 'no_code_needed'}               it is no reverse call, or it is one
--         {'other_length', {lengths of the live codes…}}   no live code is as long
--         {'exhausted', rest of the id, {…}, ms to wait}   locked by this check
--         {'locked', ms to wait}                           locked before
--         {'limited', name of the limit, ms to wait}
--         {'not_found' | 'verified_before' | 'canceled_before'}

local key = KEYS[1]
if ARGV[2] ~= '' then
  local id = redis.call('HGET', key, ARGV[1] .. ':' .. ARGV[2])
  if not id then
    return {'not_found'}
  end
  key = record_key(key, id)
end

local now = now_ms()
local record = load(key)
if record.c ~= ARGV[1] then
  return {'not_found'}
elseif record.s == 'verified' then
  return {'verified_before'}
elseif record.s == 'canceled' then
  return {'canceled_before'}
elseif record.s == 'locked' then
  return {'locked', redis.call('PEXPIRETIME', key) - now}
end

local events = ARGV[4] == '1' and KEYS[#KEYS] or nil
local limits = events and #KEYS - 1 or #KEYS
local first_candidate, candidates = 7, tonumber(ARGV[6])
local first_limit = first_candidate + candidates
local phone_key = record_key(key, 'p:' .. record.q)
local failed = recent(redis.call('HGET', phone_key, 'b'), now, ARGV[first_limit + 2])

local function is_live(serial)
  return record['x' .. serial] and tonumber(record['x' .. serial]) > now
end

local function verify(left)
  redis.call('HSET', key, 's', 'verified')
  drop_codes(key, record)
  tell(key, 'verification.verified', events)
  return {'verified', rest_of_id(key), left, record.u, record.p, record.z and 1 or 0}
end

local without_code = record.h == 'reverse_call' and not record.z
if candidates == 0 then
  if not without_code then
    return {'code_needed'}
  elseif record['k' .. record.n] and is_live(record.n) then
    return verify({})
  end
  return {'waiting', rest_of_id(key), {}, tonumber(record.g)}
elseif without_code then
  return {'no_code_needed'}
end

-- A guess is held against every live code, so for the phone it counts once for each: else whoever has three codes made
-- before guessing would be three times as lucky on the same budget.
-- One of another length than any live code is none: it was mistyped, and costs nothing.
local comparisons, lengths, as_long = 0, {}, false
for serial = 1, record.n do
  if record['d' .. serial] and is_live(serial) then
    comparisons = comparisons + 1
    lengths[comparisons] = tonumber(record['l' .. serial])
    as_long = as_long or record['l' .. serial] == ARGV[5]
  end
end
if comparisons > 0 and not as_long then
  return {'other_length', lengths}
end
comparisons = math.max(1, comparisons)

local left = {}
for i = 1, limits do
  local at = first_limit + 3 * (i - 1)
  local count, period = tonumber(ARGV[at + 1]), ARGV[at + 2]
  local inside, wait
  if i == 1 then
    inside, wait = used(failed, now, math.max(1, count - comparisons + 1), period)
  else
    inside, wait = used_of_set(KEYS[i], now, count, period)
  end
  if wait > 0 and not record.z then
    return {'limited', ARGV[at], wait}
  end
  left[i] = count - inside
end

local function find(candidate)
  local held = held_digest(key, candidate)
  for serial = 1, record.n do
    if record['d' .. serial] == held and is_live(serial) then
      return serial
    end
  end
end

for i = first_candidate, first_limit - 1 do
  local serial = find(ARGV[i])
  if serial then
    -- Whoever knows the code has heard it, whatever the provider has told of the call so far.
    if STAGE[record['t' .. serial]] < STAGE.answered then
      redis.call('HSET', key, 't' .. serial, 'answered')
    end
    return verify(left)
  end
end

if not record.z then
  for _ = 1, comparisons do
    failed[#failed + 1] = now
  end
  left[1] = math.max(0, ARGV[first_limit + 1] - #failed)
  redis.call('HSET', phone_key, 'b', write_log(failed))
  keep_until(phone_key, now + ARGV[first_limit + 2])
  for i = 2, limits do
    left[i] = left[i] - 1
    count_in_set(KEYS[i], now, ARGV[3], ARGV[first_limit + 3 * (i - 1) + 2])
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
return {'exhausted', rest_of_id(key), left, redis.call('PEXPIRETIME', key) - now}
