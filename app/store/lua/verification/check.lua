-- Check a code: find the verification, count, compare and consume in one step, so that of N right checks one verifies.
--
-- By id the code is compared with the live codes of that verification; by phone with those of all pending verifications of
-- the client, phone and purpose. A right code verifies its own. A wrong one counts against the latest, and against the
-- phone once for each code that it was compared with.
--
-- KEYS    1 record, or by phone the phone   2… further limits of failed checks (limits/window.lua)
--         then the journal, and the outbox, if the client has a webhook
-- ARGV    1 client   2 purpose by phone, '' by id   3 token of this check   4 retry digest, or ''
--         5 digest of the address, or ''   6 code length
--         7 policy, in MessagePack: {failed checks of a phone allowed, from one address, in which period, {{name, count,
--         period} of each further limit}}
--         8… code digests under each secret key; without any no code was given, and the question is whether the person
--         has dialled the number of a verification without one
-- RETURN  {'verified', rest of the id, {failed checks left of each limit…}, purpose, phone, channel of the call, 1 if it
--          is a test, else 0, reference}                   the reference is left out where there is none
--         {'verified_again', …the same}                    the check that verified it, repeated
--         {'wrong', rest of the id, {…}, checks left, reference}
--         {'waiting', rest of the id, {}, checks left, reference}      without a code: not dialled yet
--         {'code_needed' | 'no_code_needed'}
--         {'other_length', {lengths of the live codes…}}   no live code is as long
--         {'exhausted', rest of the id, {…}, ms to wait, reference}    locked by this check
--         {'locked', ms to wait}                           locked before
--         {'limited', name of the limit, ms to wait}
--         {'not_found' | 'verified_before' | 'canceled_before'}
local client, purpose, token, retry_digest, address, code_length, policy = unpack(ARGV)
local failed_allowed, failed_share, failed_period, limit_rules = unpack(cmsgpack.unpack(policy))
local first_key, limit_count = KEYS[1], #limit_rules
local limit_keys, journal, outbox = {unpack(KEYS, 2, 1 + limit_count)}, select(2 + limit_count, unpack(KEYS))
local candidates = {unpack(ARGV, 8)}

-- Find the verifications, the latest first.
local found, phone = {}, nil
if purpose == '' then
  found[1] = {key = first_key, record = load_record(first_key)}
else
  phone = load_record(first_key)
  for rest in (phone[client .. ':' .. purpose] or ''):gmatch('%x+') do
    local key = key_beside(first_key, rest)
    table.insert(found, 1, {key = key, record = load_record(key)})
  end
end

local function verified(outcome, it, left, number)
  local record = it.record
  return {outcome, rest_of_id(it.key), left, record[PURPOSE], record[PHONE], of_call(record, CHANNEL, number),
    record[IS_TEST] and 1 or 0, record[REFERENCE]}
end

local function verify(it, left, number, changes)
  changes[RETRY_DIGEST] = retry_digest ~= '' and retry_digest or nil
  finish(it.key, it.record, changes, 'verified', journal, outbox)
  return verified('verified', it, left, number)
end

local latest, pending = nil, {}
for _, it in ipairs(found) do
  if it.record[CLIENT] == client then
    latest = latest or it
    if not it.record[STATUS] then
      pending[#pending + 1] = it
    elseif retry_digest ~= '' and it.record[RETRY_DIGEST] == retry_digest then
      write_again(it.key, it.record)
      return verified('verified_again', it, {}, '')
    end
  end
end

if not latest then return {'not_found'} end
latest = pending[1] or latest
local now, key, record = now_ms(), latest.key, latest.record
if record[STATUS] == 'locked' then
  return {'locked', until_next_call(key, record, now)}
elseif record[STATUS] then
  return {record[STATUS] .. '_before'}
end

local function is_live(it, number)
  return expires_at(it.record, number) > now
end

if #candidates > 0 and record[IS_DIALLED] then return {'no_code_needed'} end
if #candidates == 0 and not record[IS_DIALLED] then return {'code_needed'} end
if #candidates == 0 then
  local number = record[LAST_CALL]
  if record[HAS_DIALLED .. number] and is_live(latest, number) then return verify(latest, {}, number, {}) end
  return {'waiting', rest_of_id(key), {}, record[CHECKS_ALLOWED], record[REFERENCE]}
end

-- A code of another length than any live one was mistyped, and costs nothing.
local live, lengths, is_as_long = {}, {}, false
for _, it in ipairs(pending) do
  for number = 1, it.record[LAST_CALL] do
    local digest, length = it.record[CODE_DIGEST .. number], of_call(it.record, CODE_LENGTH, number)
    if digest and is_live(it, number) then
      live[#live + 1] = {of = it, number = number, digest = digest}
      lengths[#live] = length
      is_as_long = is_as_long or length == tonumber(code_length)
    end
  end
end
if #live > 0 and not is_as_long then return {'other_length', lengths} end

-- Against the phone a wrong code counts once for each live code. Else requesting three codes before guessing would make a
-- right guess three times as likely on the same budget.
local comparisons = math.max(1, #live)
local phone_key, failed, left, limits = phone_key_of(key, record), nil, {}, {}
if not record[IS_TEST] then
  phone = phone or load_record(phone_key)
  failed = recent(phone[FAILED_LOG], now, failed_period)
  local inside, wait = used(failed, now, math.max(1, failed_allowed - comparisons + 1), failed_period)
  if wait > 0 then return {'limited', 'failed_checks_per_phone', wait} end
  left[1] = failed_allowed - inside
  if address ~= '' then
    inside, wait = used(failed, now, math.max(1, failed_share - comparisons + 1), failed_period, address)
    if wait > 0 then return {'limited', 'failed_checks_per_phone_and_address', wait} end
  end
  for i, rule in ipairs(limit_rules) do
    local name, count, period = unpack(rule)
    limits[i] = read_limit(redis.call('GET', limit_keys[i]))
    slide(limits[i], now, period)
    wait = wait_for_room(limits[i], now, count, period)
    if wait > 0 then return {'limited', name, wait} end
    left[#left + 1] = count - limits[i].total
  end
end

for _, candidate in ipairs(candidates) do
  for _, code in ipairs(live) do
    local it, status_field = code.of, CALL_STATUS .. code.number
    if held_digest(it.key, candidate) == code.digest then
      -- A right code was heard, even if the provider has not reported yet that the call was answered.
      local is_unanswered = STAGE[it.record[status_field]] < STAGE.answered
      return verify(it, left, code.number, {[status_field] = is_unanswered and 'answered' or nil})
    end
  end
end

if not record[IS_TEST] then
  for _ = 1, comparisons do
    failed[#failed + 1] = {now, address}
  end
  left[1] = math.max(0, failed_allowed - #failed)
  save_phone(phone_key, phone, {[FAILED_LOG] = failed}, now + failed_period)
  for i, rule in ipairs(limit_rules) do
    local _, count, period = unpack(rule)
    left[i + 1] = left[i + 1] - 1
    count_event(limits[i], now, count, period, token)
    save_limit(limit_keys[i], limits[i], period)
  end
end

append(journal, key, record, 'w')
local wrong_checks = (record[WRONG_CHECKS] or 0) + 1
local checks_left = record[CHECKS_ALLOWED] - wrong_checks
if checks_left > 0 then
  publish(key, record, {[WRONG_CHECKS] = wrong_checks}, nil, outbox)
  return {'wrong', rest_of_id(key), left, checks_left, record[REFERENCE]}
end
local wait = until_next_call(key, record, now)
finish(key, record, {[WRONG_CHECKS] = wrong_checks}, 'locked', journal, outbox)
return {'exhausted', rest_of_id(key), left, wait, record[REFERENCE]}
