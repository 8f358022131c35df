#!lua flags=allow-oom
-- Read a verification. Changes are published only of those that are followed.
--
-- KEYS    1 record
-- ARGV    1 client, or '' for any   2 '1' to follow it from now on
-- RETURN  {'found', now, expires, record}
--         {'not_found'}
local key = KEYS[1]
local client, follow = unpack(ARGV)

local record, packed = load_record(key)
if not record[CLIENT] or client ~= '' and client ~= record[CLIENT] then return {'not_found'} end
if follow == '1' and not record[IS_FOLLOWED] then
  packed = save_record(key, record, {[IS_FOLLOWED] = 1})
end
return {'found', now_ms(), redis.call('PEXPIRETIME', key), packed}
