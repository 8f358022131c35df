#!lua flags=allow-oom
-- Look a call up no more. schedule.lua says what is where.
--
-- KEYS    1 due   2 attempts
-- ARGV    1 name of the call
-- RETURN  1 if it was to be looked up, else 0

redis.call('HDEL', KEYS[2], ARGV[1])
return redis.call('ZREM', KEYS[1], ARGV[1])
