-- Call a pending verification off.
--
-- KEYS    1 record   2 stream of events, if the client has a webhook
-- ARGV    1 client
-- RETURN  {'canceled', now, expires, record}   now or before
--         {'locked', ms to wait}
--         {'not_found' | 'verified_before'}

local key = KEYS[1]
local now = now_ms()
local record = load(key)
if record.c ~= ARGV[1] then
  return {'not_found'}
elseif record.s == 'verified' then
  return {'verified_before'}
elseif record.s == 'locked' then
  return {'locked', until_next_call(key, record, now)}
end

if not record.s then
  redis.call('HSET', key, 's', 'canceled')
  drop_codes(key, record)
  tell(key, 'verification.canceled', KEYS[2])
end
return {'canceled', int(now), redis.call('PEXPIRETIME', key), redis.call('HGETALL', key)}
