-- Store the digest of a call about to be placed: of a new verification, or of the one that is called again. The record's
-- channel, code length and checks change only once the call is recorded, so that a refund leaves what was there before.
-- start_rules.lua precedes it: it lists KEYS and ARGV, and returns what refuses the start.
--
-- RETURN  {'started', checks left once the call is placed, {calls left of each limit…}, now, expires, record}
--         {'cooldown' | 'calls_exhausted', ms to wait} | {'limited', name of the limit, ms to wait} | {'not_found'}

local IDS_KEPT = 20 -- of a client and purpose; the limits of a phone let fewer live at a time

if tonumber(number) ~= next_number then
  return {'cooldown', 1000} -- another call of this verification came between the preview and this
end

local cooldowns = {}
for cooldown in cooldown_list:gmatch('%d+') do
  cooldowns[#cooldowns + 1] = tonumber(cooldown)
end
local longest_cooldown = cooldowns[#cooldowns]
-- The streak outlives its cooldown by the longest one: waiting until it is forgotten is never faster than obeying.
local is_remembered = phone[STREAK] and next_call + longest_cooldown > now
local streak = is_remembered and phone[STREAK] + 1 or 1
local resend_at = int(now + cooldowns[math.min(streak, #cooldowns)])
local expires = int(now + lifetime)
local key = is_resend and named_key or new_key

local other_calls_left = is_resend and named[CALLS_LEFT] - 1 or is_dialled and 0 or calls_allowed - 1
if not is_resend then
  redis.call('HSET', key, CLIENT, client, PURPOSE, purpose, PHONE, phone_number, PHONE_DIGEST, rest_of_id(phone_key),
    CHECKS_ALLOWED, checks_allowed, CREATED_AT, int(now), CHANNEL, channel, CODE_LENGTH, code_length)
  if is_test or is_dialled then
    redis.call('HSET', key, is_test and IS_TEST or IS_DIALLED, 1)
  end
end
redis.call('HSET', key, LAST_CALL, number, CALLS_LEFT, other_calls_left, RESEND_AT, resend_at, EXPIRES_AT .. number, expires,
  CALL_STATUS .. number, 'initiated', CHANNEL .. number, channel, CODE_LENGTH .. number, code_length, RESERVATION .. number,
  table.concat({resend_at, phone[STREAK] or 0, phone[NEXT_CALL] or 0, checks_allowed, token}, ' '))
if code_digest ~= '' then
  redis.call('HSET', key, CODE_DIGEST .. number, held_digest(key, code_digest))
end
redis.call('PEXPIREAT', key, expires)
if is_resend and events then
  schedule_expiry(key, named, events)
end

if not is_test then
  redis.call('HSET', phone_key, STREAK, streak, NEXT_CALL, resend_at, ASKED_CALL, rest_of_id(key) .. ':' .. number)
end
if is_dialled then
  redis.call('HSET', phone_key, DIALLED_REST, rest_of_id(key))
elseif not is_resend then
  local alive = {}
  for rest in (phone[owner] or ''):gmatch('%x+') do
    if redis.call('EXISTS', record_key(phone_key, rest)) == 1 then
      alive[#alive + 1] = rest
    end
  end
  alive[#alive + 1] = rest_of_id(key)
  redis.call('HSET', phone_key, owner, table.concat(alive, ',', math.max(1, #alive - IDS_KEPT + 1)))
end
if longest_period > 0 then
  placed[#placed + 1] = {at = now, address = ''}
  redis.call('HSET', phone_key, CALL_LOG, write_log(placed))
end
keep_until(phone_key, math.max(expires, resend_at + longest_cooldown, now + longest_period))

local checks_left = tonumber(checks_allowed)
if is_resend then
  checks_left = math.max(1, math.min(named[CHECKS_ALLOWED], checks_allowed) - (named[WRONG_CHECKS] or 0))
end
return {'started', checks_left, calls_left, snapshot(key, now)}
