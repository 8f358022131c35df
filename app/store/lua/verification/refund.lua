#!lua flags=allow-oom
-- Refund a call that definitely was not placed, so that what was there before is there again. Repeated, it changes
-- nothing, because the number of a call is never used again. The cooldown of a later call stays, and so do wrong checks.
--
-- KEYS    1 phone   2 record   3… other limits in which start.lua has counted the call, as of limits/refund.lua
--         then the journal, and the outbox, if the client has a webhook
-- ARGV    1 number of the call   2 lifetime of a call   3 token of the start that stored it, or '' for any: of two starts
--         that name the same verification one is refused, and must not refund the call of the other   4 kind and 5 reason of the refusal, or ''
--         6 how many keys the other limits have   7 their rules (limits/decision.lua), or ''
-- RETURN  1 if this has refunded it, else 0
local phone_key, key = unpack(KEYS)
local number, lifetime, token, kind, reason, other_key_count, other_rules = unpack(ARGV)
local other_keys, journal, outbox = {unpack(KEYS, 3, 2 + other_key_count)}, select(3 + other_key_count, unpack(KEYS))

local record, phone = load_record(key), load_record(phone_key)
local reservation = record[RESERVATION .. number] or ''
if not record[CALL_STATUS .. number] or token ~= '' and reservation:match('%S*$') ~= token then return 0 end
append(journal, key, record, 'r', number, kind, reason)
local was_recorded = record[CALL_REF .. number] or record[CALL_STATUS .. number] ~= 'initiated'

local placed, placed_at = phone[CALL_LOG] or {}, expires_at(record, number) - lifetime
if #other_keys > 0 then
  refund(other_keys, other_rules, token, placed_at)
end
for i, moment in ipairs(placed) do
  if moment == placed_at then
    table.remove(placed, i)
    break
  end
end
local changes_of_phone = {[CALL_LOG] = #placed > 0 and placed}
local resend_at, streak, next_call = reservation:match('^(%d+) (%d+) (%d+)')
if resend_at and phone[NEXT_CALL] == tonumber(resend_at) then
  local was_called = streak ~= '0'
  changes_of_phone[STREAK], changes_of_phone[NEXT_CALL] = was_called and tonumber(streak), was_called and tonumber(next_call)
end
if phone[ASKED_CALL] == asked_call(key, number) then
  changes_of_phone[ASKED_CALL] = false
end

local changes = {[CALLS_LEFT] = record[CALLS_LEFT] + 1}
if record[LAST_CALL] == tonumber(number) then
  changes[RESEND_AFTER] = false
end
for _, field in ipairs({CHANNEL, CODE_LENGTH, CALL_STATUS, UNKNOWN_STATUS, EXPIRES_AFTER, CODE_DIGEST, CALL_REF, NUMBER_TO_DIAL,
    HAS_DIALLED, LIMITS_TOKEN, RESERVATION}) do
  changes[field .. number] = false
end

-- The verification again ends with the last of its other codes.
local others, expires = 0, 0
for other = 1, record[LAST_CALL] do
  if tostring(other) ~= number and record[CALL_STATUS .. other] then
    others = others + 1
    expires = math.max(expires, expires_at(record, other))
  end
end
if expires > 0 then
  redis.call('PEXPIREAT', key, expires)
end

-- Without a call it is deleted, unless it is final, or its client's webhook knows it.
local is_over = others > 0 and expires <= now_ms()
if is_over or others == 0 and not record[STATUS] and not record[IS_ANNOUNCED] then
  local owner = record[CLIENT] .. ':' .. record[PURPOSE]
  local ids = (phone[owner] or ''):gsub(',?' .. rest_of_id(key), '')
  changes_of_phone[owner] = ids ~= '' and ids
  if phone[DIALLED_REST] == rest_of_id(key) then
    changes_of_phone[DIALLED_REST] = false
  end
  redis.call('DEL', key)
  notify_followers(key, record)
  if outbox and record[IS_ANNOUNCED] and not record[STATUS] then
    add_to_outbox(outbox, expires + AFTER_EXPIRY_MS, expiry_event(key, record))
  end
else
  if was_recorded then
    publish(key, record, changes, record[IS_ANNOUNCED] and 'call.status_changed', outbox)
  else
    save_record(key, record, changes)
    notify_followers(key, record) -- they may have seen the call while the provider was being asked
  end
  if outbox then
    schedule_expiry(key, record, outbox)
  end
end
save_record(phone_key, phone, changes_of_phone)
return 1
