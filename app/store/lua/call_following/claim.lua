-- Claim calls that are due, the longest due first: each is one claimer's until its lease ends. schedule.lua says
-- what is where.
--
-- KEYS    1 due   2 attempts   3 looks
-- ARGV    1 how many at most   2 how many everybody may claim in a second   3 lease ms
--         4 for how many ms a call is kept that nobody claims
-- RETURN  {how many were kept too long and are dropped, {{name, how often it was claimed, now included}, …}}

local now = now_ms()
local most, per_second, lease, memory = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]

local kept_too_long = redis.call('ZRANGE', KEYS[1], '-inf', now - memory, 'BYSCORE', 'LIMIT', 0, 100)
for _, name in ipairs(kept_too_long) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
end

local room = math.max(0, per_second - used_of_set(KEYS[3], now, per_second, 1000))
local claimed = {}
for _, name in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, math.min(most, room))) do
  redis.call('ZADD', KEYS[1], int(now + lease), name)
  count_in_set(KEYS[3], now, int(now) .. ':' .. name, 1000)
  claimed[#claimed + 1] = {name, redis.call('HINCRBY', KEYS[2], name, 1)}
end
if #claimed > 0 then
  redis.call('PEXPIRE', KEYS[1], memory)
  redis.call('PEXPIRE', KEYS[2], memory)
end
return {#kept_too_long, claimed}
