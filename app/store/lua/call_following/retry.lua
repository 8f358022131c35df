-- Schedule another poll of a claimed call, unless the claim is over: the call is done, scheduled anew, or claimed by
-- another worker. schedule.lua describes the keys.
--
-- KEYS    1 due   2 attempts
-- ARGV    1 id of the call   2 how often it was claimed, as the claim said   3 delay
--         4 for how long an unclaimed call is kept
local due, attempts = unpack(KEYS)
local call, attempt, delay, memory = unpack(ARGV)

if redis.call('HGET', attempts, call) == attempt then
  redis.call('ZADD', due, now_ms() + delay, call)
  redis.call('PEXPIRE', due, memory)
  redis.call('PEXPIRE', attempts, memory)
end
