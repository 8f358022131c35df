#!lua flags=allow-oom
-- Read a verification.
--
-- KEYS    1 record
-- ARGV    1 client, or '' for any
-- RETURN  {'found', now, expires, record}
--         {'not_found'}
local key, client = KEYS[1], ARGV[1]

local owner = redis.call('HGET', key, CLIENT)
if not owner or client ~= '' and client ~= owner then return {'not_found'} end
return {'found', snapshot(key, now_ms())}
