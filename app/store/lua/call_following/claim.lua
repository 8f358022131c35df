-- Claim calls that are due, the longest due first. A claim ends with its lease. schedule.lua describes the keys.
--
-- KEYS    1 due   2 attempts   3 polls (a limit: limits/window.lua)
-- ARGV    1 how many at most   2 how many all workers may claim in a second   3 lease
--         4 for how long an unclaimed call is kept
-- RETURN  {how many were kept too long and are dropped, {{id, how often it was claimed, with this claim}, …}}
local due, attempts, polls = unpack(KEYS)
local most, per_second, lease, memory = unpack(ARGV)

per_second = tonumber(per_second)
local SECOND = 1000

local now, rate, claimed = now_ms(), read_limit(redis.call('GET', polls)), {}
slide(rate, now, SECOND)
local kept_too_long = redis.call('ZRANGE', due, '-inf', now - memory, 'BYSCORE', 'LIMIT', 0, 100)
for _, call in ipairs(kept_too_long) do
  redis.call('ZREM', due, call)
  redis.call('HDEL', attempts, call)
end

local room = math.max(0, per_second - rate.total)
for _, call in ipairs(redis.call('ZRANGE', due, '-inf', now, 'BYSCORE', 'LIMIT', 0, math.min(most, room))) do
  redis.call('ZADD', due, now + lease, call)
  count_event(rate, now, per_second, SECOND, '0') -- the token of all, for a claim is never refunded
  claimed[#claimed + 1] = {call, redis.call('HINCRBY', attempts, call, 1)}
end
if #claimed > 0 then
  save_limit(polls, rate, SECOND)
  redis.call('PEXPIRE', due, memory)
  redis.call('PEXPIRE', attempts, memory)
end
return {#kept_too_long, claimed}
