-- Have a call looked up after a while, as if it had never been.
--
-- pv:{queue}:due         sorted set: the calls to be looked up: name → when, or until when somebody has claimed it
-- pv:{queue}:attempts    hash: name → how often it was claimed
-- pv:{queue}:looks       sorted set: the claims of the last second, everybody's
--
-- KEYS    1 due   2 attempts
-- ARGV    1 name of the call   2 delay ms   3 for how many ms a call is kept that nobody claims
-- RETURN  1

local now, memory = now_ms(), ARGV[3]

-- Where nobody claims, nobody else would drop anything.
for _, name in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now - memory, 'BYSCORE', 'LIMIT', 0, 10)) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
end

redis.call('ZADD', KEYS[1], int(now + ARGV[2]), ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], memory)
return 1
