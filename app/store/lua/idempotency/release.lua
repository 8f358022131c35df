#!lua flags=allow-oom
-- Release the claim of a request that is not answered, unless it is over.
--
-- KEYS    1 request   2 what was begun; without it the note stays, for a repetition of the request
-- ARGV    1 token
local request_key, token = KEYS[1], ARGV[1]

if redis.call('HGET', request_key, 'token') == token then
  redis.call('DEL', unpack(KEYS))
end
