#!lua flags=allow-oom
-- Read a verification.
--
-- KEYS    1 record
-- ARGV    1 client, or '' for whoever's it is
-- RETURN  {'found', now, expires, record}
--         {'not_found'}

local key = KEYS[1]
local client = redis.call('HGET', key, 'c')
if not client or ARGV[1] ~= '' and client ~= ARGV[1] then
  return {'not_found'}
end
return {'found', int(now_ms()), redis.call('PEXPIRETIME', key), redis.call('HGETALL', key)}
