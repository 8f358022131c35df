#!lua flags=allow-oom
-- Return the state of delivery. lease.lua and add_dead.lua describe the keys.
--
-- KEYS    1 due   2 waiting   3 dead
-- ARGV    1 for how long dead letters are kept
-- RETURN  {how long a bucket is overdue at most, how many events wait, are dead}
local due, waiting, dead = unpack(KEYS)
local kept = ARGV[1]

local now = now_ms()
local first, count = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES'), 0
for _, of_bucket in pairs(load(waiting)) do
  count = count + of_bucket
end
return {math.max(0, now - (first[2] or now)), count, redis.call('ZCOUNT', dead, now - kept, '+inf')}
