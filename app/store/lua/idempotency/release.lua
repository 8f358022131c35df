#!lua flags=allow-oom
-- Release the claim of a request that is not answered, unless it is over. claim.lua describes the key.
--
-- KEYS    1 request
-- ARGV    1 token   2 what was begun and is undone, or ''; anything else that was begun is kept, for a repetition of the
--         request
local key = KEYS[1]
local token, undone = unpack(ARGV)

local holder, claimed_until, begun = unpack(redis.call('HMGET', key, 'token', 'claimed_until', 'begun'))
if holder ~= token or tonumber(claimed_until) <= now_ms() then return end
if begun and begun ~= undone then
  redis.call('HDEL', key, 'token', 'claimed_until')
else
  redis.call('DEL', key)
end
