-- Keep the answer of a claimed request; claim.lua lists the fields. Without the token it is no longer one's own: the
-- answer was kept before, or the claim expired and may be somebody else's.
--
-- KEYS    1 request   2 what was begun
-- ARGV    1 token   2 status   3 headers   4 body   5 ms to keep it
-- RETURN  1 if it is kept, else 0

if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then
  return 0
end
redis.call('HDEL', KEYS[1], 'token')
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'headers', ARGV[3], 'body', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('DEL', KEYS[2])
return 1
