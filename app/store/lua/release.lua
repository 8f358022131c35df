#!lua flags=allow-oom
-- Give up the claim of a request that came to nothing, if it is still one's own.
--
-- KEYS    1 request   2 what was begun
-- ARGV    1 token
-- RETURN  nothing

if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then
  redis.call('DEL', KEYS[1], KEYS[2])
end
