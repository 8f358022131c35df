-- Schedule the first poll of a call's status.
--
-- {queue}:due         sorted set: the calls to poll: id → when, or until when it is claimed
-- {queue}:attempts    hash: id → how often it was claimed
-- {queue}:polls       string: the claims of the last second, of all workers, as a limit (limits/window.lua)
--
-- KEYS    1 due   2 attempts
-- ARGV    1 id of the call   2 delay   3 for how long an unclaimed call is kept   4 how many calls at most
-- RETURN  1, or 0 if so many calls precede it that it would not be claimed before it is dropped
local due, attempts = unpack(KEYS)
local call, delay, memory, most = unpack(ARGV)

-- Where no worker claims, nothing else would remove them.
local now = now_ms()
for _, old in ipairs(redis.call('ZRANGE', due, '-inf', now - memory, 'BYSCORE', 'LIMIT', 0, 10)) do
  redis.call('ZREM', due, old)
  redis.call('HDEL', attempts, old)
end

if redis.call('ZCARD', due) >= tonumber(most) and not redis.call('ZSCORE', due, call) then return 0 end
if redis.call('ZADD', due, now + delay, call) == 0 then
  redis.call('HDEL', attempts, call) -- it was in the queue, and may have been claimed
end
redis.call('PEXPIRE', due, memory)
return 1
