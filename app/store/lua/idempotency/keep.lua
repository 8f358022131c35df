-- Keep the answer of a claimed request, unless the claim is over: an answer was kept before, or the claim expired and may
-- be another request's. claim.lua describes the key.
--
-- KEYS    1 request
-- ARGV    1 token   2 status   3 headers   4 body   5 for how long to keep it
-- RETURN  1 if it is kept, else 0
local key = KEYS[1]
local token, status, headers, body, keep_for = unpack(ARGV)

local holder, claimed_until = unpack(redis.call('HMGET', key, 'token', 'claimed_until'))
if holder ~= token or tonumber(claimed_until) <= now_ms() then return 0 end
redis.call('HDEL', key, 'token', 'claimed_until', 'begun')
redis.call('HSET', key, 'status', status, 'headers', headers, 'body', body)
redis.call('PEXPIRE', key, keep_for)
return 1
