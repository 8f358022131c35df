#!lua flags=allow-oom
-- Release the claim of a request that is not answered, unless it is over. claim.lua describes the key.
--
-- KEYS    1 request
-- ARGV    1 token   2 '1' to keep what was begun, for a repetition of the request
local key = KEYS[1]
local token, keep_begun = unpack(ARGV)

local holder, claimed_until, begun = unpack(redis.call('HMGET', key, 'token', 'claimed_until', 'begun'))
if holder ~= token or tonumber(claimed_until) <= now_ms() then return end
if keep_begun == '1' and begun then
  redis.call('HDEL', key, 'token', 'claimed_until')
else
  redis.call('DEL', key)
end
