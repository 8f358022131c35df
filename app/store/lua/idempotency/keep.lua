-- Keep the answer of a claimed request, unless the claim is over: an answer was kept before, or the claim expired and may
-- be another request's. claim.lua describes the keys.
--
-- KEYS    1 request   2 what was begun
-- ARGV    1 token   2 status   3 headers   4 body   5 for how long to keep it
-- RETURN  1 if it is kept, else 0
local request_key, begun_key = unpack(KEYS)
local token, status, headers, body, keep_for = unpack(ARGV)

if redis.call('HGET', request_key, 'token') ~= token then return 0 end
redis.call('HDEL', request_key, 'token')
redis.call('HSET', request_key, 'status', status, 'headers', headers, 'body', body)
redis.call('PEXPIRE', request_key, keep_for)
redis.call('DEL', begun_key)
return 1
