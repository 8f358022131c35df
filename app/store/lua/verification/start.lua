-- Store the digest of a call about to be placed: of a new verification, or of the one that is called again. The record's
-- channel, code length and checks change only once the call is recorded, so that a refund leaves what was there before.
-- start_rules.lua precedes it: it lists KEYS and ARGV, and returns what refuses the start.
--
-- RETURN  {'started', decision of the other limits, checks left once the call is placed, {calls left of each limit of the
--          phone…}, now, expires, record}
--         {'no_room', decision of the other limits}
--         {'cooldown' | 'calls_exhausted', ms to wait} | {'limited', name of the limit, ms to wait} | {'not_found'}

local IDS_KEPT = 20 -- of a client and purpose; the limits of a phone let fewer live at a time

if tonumber(number) ~= next_number then
  return {'cooldown', 1000} -- another call of this verification came between the preview and this
end

local decision, has_room = {}, true
if #other_keys > 0 then
  decision, has_room = acquire(other_keys, other_rules, token, now)
end
if not has_room then return {'no_room', decision} end

local longest_cooldown = cooldowns[#cooldowns]
-- The streak outlives its cooldown by the longest one: waiting until it is forgotten is never faster than obeying.
local is_remembered = phone[STREAK] and next_call + longest_cooldown > now
local streak = is_remembered and phone[STREAK] + 1 or 1
local resend_at = now + cooldowns[math.min(streak, #cooldowns)]
local expires = now + lifetime

code_length, checks_allowed = tonumber(code_length), tonumber(checks_allowed)
local checks_left, calls_left = checks_allowed, is_dialled and 0 or calls_allowed - 1
local key, record = new_key, {}
if is_resend then
  key, record = named_key, named
  checks_left = math.max(1, math.min(record[CHECKS_ALLOWED], checks_allowed) - (record[WRONG_CHECKS] or 0))
  calls_left = record[CALLS_LEFT] - 1
end
local changes = {
  [LAST_CALL] = next_number,
  [CALLS_LEFT] = calls_left,
  [CALL_STATUS .. number] = 'initiated',
  [CODE_DIGEST .. number] = code_digest ~= '' and held_digest(key, code_digest),
  [RESERVATION .. number] = table.concat({resend_at, phone[STREAK] or 0, phone[NEXT_CALL] or 0, checks_allowed, token}, ' '),
}
if is_resend then
  changes[CHANNEL .. number] = channel ~= record[CHANNEL] and channel
  changes[CODE_LENGTH .. number] = code_length ~= record[CODE_LENGTH] and code_length
else
  changes[CLIENT], changes[PURPOSE], changes[PHONE], changes[PHONE_DIGEST] = client, purpose, phone_number, rest_of_id(phone_key)
  changes[CHECKS_ALLOWED], changes[CREATED_AT], changes[CHANNEL], changes[CODE_LENGTH] = checks_allowed, now, channel, code_length
  changes[IS_TEST], changes[IS_DIALLED] = is_test and 1, is_dialled and 1
  changes[REFERENCE] = reference ~= '' and reference or named[REFERENCE]
end
changes[CONSENT] = consent ~= '' and consent or named[CONSENT]
local created = record[CREATED_AT] or now
changes[RESEND_AFTER], changes[EXPIRES_AFTER .. number] = resend_at - created, expires - created
local changes_of_phone = {}
if not is_test then
  changes_of_phone = {[STREAK] = streak, [NEXT_CALL] = resend_at, [ASKED_CALL] = asked_call(key, number)}
end
if is_dialled then
  changes_of_phone[DIALLED_REST] = rest_of_id(key)
elseif not is_resend then
  local alive = {}
  for rest in (phone[owner] or ''):gmatch('%x+') do
    if redis.call('EXISTS', key_beside(phone_key, rest)) == 1 then
      alive[#alive + 1] = rest
    end
  end
  alive[#alive + 1] = rest_of_id(key)
  changes_of_phone[owner] = table.concat(alive, ',', math.max(1, #alive - IDS_KEPT + 1))
end
if longest_period > 0 then
  placed[#placed + 1] = now
  changes_of_phone[CALL_LOG] = placed
end

local packed = save_record(key, record, changes, expires)
if kept_in_journal ~= '0' and not is_test then
  begin_attempt(journal, key, record, number, range_operator, now, kept_in_journal)
end
if is_resend and outbox then
  schedule_expiry(key, record, outbox)
end
save_phone(phone_key, phone, changes_of_phone, math.max(expires, resend_at + longest_cooldown, now + longest_period))

return {'started', decision, checks_left, left, now, expires, packed}
