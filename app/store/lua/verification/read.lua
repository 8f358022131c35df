#!lua flags=allow-oom
-- Read a verification.
--
-- KEYS    1 record
-- ARGV    1 client, or '' for any
-- RETURN  {'found', now, expires, record}
--         {'not_found'}
local key, client = KEYS[1], ARGV[1]

local record = load(key)
if not record[CLIENT] or client ~= '' and client ~= record[CLIENT] then return {'not_found'} end
return {'found', snapshot(now_ms(), redis.call('PEXPIRETIME', key), record)}
