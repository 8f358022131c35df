-- Schedule the first poll of a call's status.
--
-- pv:{queue}:due         sorted set: the calls to poll: id → when, or until when it is claimed
-- pv:{queue}:attempts    hash: id → how often it was claimed
-- pv:{queue}:polls       sorted set: the claims of the last second, of all workers
--
-- KEYS    1 due   2 attempts
-- ARGV    1 id of the call   2 delay   3 for how long an unclaimed call is kept
local due, attempts = unpack(KEYS)
local call, delay, memory = unpack(ARGV)

-- Where no worker claims, nothing else would remove them.
local now = now_ms()
for _, old in ipairs(redis.call('ZRANGE', due, '-inf', now - memory, 'BYSCORE', 'LIMIT', 0, 10)) do
  redis.call('ZREM', due, old)
  redis.call('HDEL', attempts, old)
end

if redis.call('ZADD', due, now + delay, call) == 0 then
  redis.call('HDEL', attempts, call) -- it was in the queue, and may have been claimed
end
redis.call('PEXPIRE', due, memory)
