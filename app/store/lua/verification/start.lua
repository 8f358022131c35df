-- Store the digest of a call about to be placed: of a new verification, or of the one that the request names (a resend).
-- The record's channel, code length and checks change only once the call is recorded, so that one that is refunded leaves
-- what was there before. Both lists of arguments are those of start_rules.lua, which stands before this.
--
-- RETURN  {'started', now, expires, record, checks left once the call is placed, {calls left of each limit…}}
--         {'cooldown' | 'calls_exhausted', ms to wait} | {'limited', name of the limit, ms to wait} | {'not_found'}

local IDS_KEPT = 20 -- of a client and purpose; the limits of a phone let fewer live at a time

local refused = refusal()
if refused then
  return refused
elseif call_number ~= (is_resend and named.n + 1 or 1) then
  return {'cooldown', 1000} -- another call of this verification came between the preview and this
end

local longest_cooldown = cooldowns[#cooldowns]
-- The streak outlives its cooldown by the longest one: waiting until it is forgotten is never faster than obeying.
local remembered = phone.n and next_call + longest_cooldown > now
local streak = remembered and phone.n + 1 or 1
local resend_at = int(now + cooldowns[math.min(streak, #cooldowns)])
local expires = int(now + lifetime)
local key = is_resend and named_key or KEYS[2]

local left = is_resend and named.m - 1 or is_reverse and 0 or calls_allowed - 1
if not is_resend then
  redis.call('HSET', key, 'c', client, 'u', purpose, 'p', phone_number, 'q', rest_of_id(KEYS[1]), 'g', checks_allowed,
    'a', int(now), 'h', channel, 'l', code_length)
  if is_test then
    redis.call('HSET', key, 'z', 1)
  end
end
redis.call('HSET', key, 'n', call_number, 'm', left, 'r', resend_at, 'x' .. call_number, expires, 't' .. call_number,
  'initiated', 'h' .. call_number, channel, 'l' .. call_number, code_length, 'o' .. call_number,
  table.concat({resend_at, phone.n or 0, phone.r or 0, checks_allowed, token}, ' '))
if code_digest ~= '' then
  redis.call('HSET', key, 'd' .. call_number, held_digest(key, code_digest))
end
redis.call('PEXPIREAT', key, expires)
if is_resend and KEYS[3] then
  schedule_expiry(key, named, KEYS[3])
end

if not is_test then
  redis.call('HSET', KEYS[1], 'n', streak, 'r', resend_at, 'w', rest_of_id(key) .. ':' .. call_number)
end
if is_reverse then
  redis.call('HSET', KEYS[1], 'd', rest_of_id(key))
elseif not is_resend then
  local alive = {}
  for rest in (phone[owner] or ''):gmatch('%x+') do
    if redis.call('EXISTS', record_key(KEYS[1], rest)) == 1 then
      alive[#alive + 1] = rest
    end
  end
  alive[#alive + 1] = rest_of_id(key)
  redis.call('HSET', KEYS[1], owner, table.concat(alive, ',', math.max(1, #alive - IDS_KEPT + 1)))
end
if longest_period > 0 then
  placed[#placed + 1] = {at = now, address = ''}
  redis.call('HSET', KEYS[1], 'l', write_log(placed))
end
keep_until(KEYS[1], math.max(expires, resend_at + longest_cooldown, now + longest_period))

local checks_left = is_resend and math.max(1, math.min(named.g, checks_allowed) - (named.b or 0)) or tonumber(checks_allowed)
return {'started', int(now), tonumber(expires), redis.call('HGETALL', key), checks_left, calls_left}
