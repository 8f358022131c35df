#!lua flags=allow-oom
-- Give up the claim of a request that is not answered, if it is still one's own.
--
-- KEYS    1 request   2 what was begun, left out where its note stays, for whoever repeats the request
-- ARGV    1 token
-- RETURN  nothing

if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then
  redis.call('DEL', unpack(KEYS))
end
