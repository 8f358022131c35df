-- Have a claimed call looked up again after a while, unless the claim is over: the call is done, scheduled anew, or
-- another's. schedule.lua says what is where.
--
-- KEYS    1 due   2 attempts
-- ARGV    1 name of the call   2 how often it was claimed, as the claim said   3 delay ms
--         4 for how many ms a call is kept that nobody claims
-- RETURN  1 if it will be, else 0

if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('ZADD', KEYS[1], int(now_ms() + ARGV[3]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
