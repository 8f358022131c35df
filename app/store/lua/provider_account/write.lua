-- Write down a balance that was just read. balance_look.lua says what is where.
--
-- KEYS    1 balance
-- ARGV    1 balance in RUB   2 for how many ms it is kept
-- RETURN  1

redis.call('HSET', KEYS[1], 'v', ARGV[1], 'a', int(now_ms()))
redis.call('HDEL', KEYS[1], 'l')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
