-- Record what happened to a call. It never goes back to an earlier stage, and one that was refunded does not return.
--
-- KEYS    1 record   2 journal   3 outbox, if the client has a webhook
-- ARGV    1 number of the call   2 status   3 provider's reference, or ''   4 provider's unknown status, or ''
--         5 digest and 6 length of the code that the provider chose, or '' and ''   7 number to dial, or ''
--         8 operator, or ''   9 token in the limits, if the call may be refunded later, or ''
-- RETURN  {'recorded', 1 if this has ended the call, else 0} | {'not_found'}
local key, journal, outbox = unpack(KEYS)
local number, status, ref, unknown_status, code_digest, code_length, dial, operator, limits_token = unpack(ARGV)

local record = load_record(key)
if not record[CLIENT] then return {'not_found'} end

local before = record[CALL_STATUS .. number]
if not before or STAGE[before] == LAST_STAGE or STAGE[status] < STAGE[before] then return {'recorded', 0} end
local is_first = not record[CALL_REF .. number] and before == 'initiated'
local is_new_ref = ref ~= '' and ref ~= record[CALL_REF .. number]
local is_new_word = unknown_status ~= (record[UNKNOWN_STATUS .. number] or '')
local is_created = outbox and not record[IS_ANNOUNCED]

local function given(argument)
  return argument ~= '' and argument or nil
end
local changes = {
  [CALL_STATUS .. number] = status,
  [CALL_REF .. number] = given(ref),
  [UNKNOWN_STATUS .. number] = given(unknown_status) or false,
  [NUMBER_TO_DIAL .. number] = given(dial),
  [LIMITS_TOKEN .. number] = given(limits_token),
}
if not record[STATUS] and code_digest ~= '' then
  changes[CODE_DIGEST .. number] = held_digest(key, code_digest)
  changes[CODE_LENGTH .. number] = tonumber(code_length)
end
-- Now that the call was placed, or may have been, its channel and its budget of checks are those of the verification.
if is_first then
  if outbox and record[IS_ANNOUNCED] and record[CHANNEL .. number] then
    redis.call('ZREM', outbox, expiry_event(key, record)) -- it names the channel
  end
  for _, field in ipairs({CHANNEL, CODE_LENGTH}) do -- which other calls keep
    local own = changes[field .. number] or record[field .. number]
    if own then
      for other = 1, record[LAST_CALL] do
        changes[field .. other] = of_call(record, field, other)
      end
      changes[field], changes[field .. number] = own, false
    end
  end
  local checks = tonumber((record[RESERVATION .. number] or ''):match('^%d+ %d+ %d+ (%d+)'))
  -- A channel that allows fewer checks makes the budget smaller, but its own code can be checked once.
  if checks and checks < record[CHECKS_ALLOWED] and not record[STATUS] then
    changes[CHECKS_ALLOWED] = math.max((record[WRONG_CHECKS] or 0) + 1, checks)
  end
end
local phone_key = phone_key_of(key, record)
local phone = (is_first or operator ~= '') and load_record(phone_key) or {}
if next(phone) then
  save_record(phone_key, phone, {
    [OPERATOR] = given(operator) or phone[OPERATOR],
    [ASKED_CALL] = phone[ASKED_CALL] ~= asked_call(key, number) and phone[ASKED_CALL],
  })
end
if status ~= 'unconfirmed' then
  changes[RESERVATION .. number] = false
end

if before ~= status or is_new_ref or is_new_word or is_first or is_created then
  append(journal, key, record, 's', number, status:sub(1, 1), ref, operator, unknown_status)
  publish(key, record, changes, is_created and 'verification.created' or 'call.status_changed', outbox)
else
  save_record(key, record, changes)
end
return {'recorded', STAGE[status] == LAST_STAGE and 1 or 0}
