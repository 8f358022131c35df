#!lua flags=allow-oom
-- Lease buckets that have an event to deliver, those that are due for the longest time first. Before that, make buckets
-- due that have changed: only take.lua, in the slot of each, can tell when its next event is.
--
-- A process that dies may not have written which buckets it changed. So a worker that asks for more buckets than are due
-- also gets those whose turn it is in a sweep, which all workers share: it finds such an event within a minute.
--
-- {webhooks}:due      sorted set: bucket → when its earliest event is due, or until when it is leased
-- {webhooks}:swept    how many buckets should have been visited since 1970, and were
-- {webhooks}:waiting  hash: bucket → how many of its events take.lua left waiting the last time, if any
--
-- KEYS    1 due   2 swept
-- ARGV    1 how many at most   2 lease   3… buckets that have changed
-- RETURN  {until when they are leased, bucket…}
local due, swept = unpack(KEYS)
local most, lease = unpack(ARGV)
local changed = {select(3, unpack(ARGV))}

local BUCKETS, SWEEP_MS = 4096, 45000

local now = now_ms()
local turn = math.floor(now * BUCKETS / SWEEP_MS)
local last_swept = math.max(redis.call('GET', swept) or 0, turn - BUCKETS)
for _, bucket in ipairs(changed) do
  redis.call('ZADD', due, 'LT', now, bucket)
end

local leased_until = now + lease
local buckets = redis.call('ZRANGE', due, '-inf', now, 'BYSCORE', 'LIMIT', 0, most)
local next_swept = last_swept
while #buckets < tonumber(most) and next_swept < turn do
  next_swept = next_swept + 1
  local bucket = string.format('%03x', next_swept % BUCKETS)
  if tonumber(redis.call('ZSCORE', due, bucket) or math.huge) > leased_until then -- else it is due within a lease
    buckets[#buckets + 1] = bucket
  end
end
if next_swept > last_swept then
  redis.call('SET', swept, next_swept, 'PX', EVENTS_KEPT_MS)
end

for _, bucket in ipairs(buckets) do
  redis.call('ZADD', due, leased_until, bucket)
end
redis.call('PEXPIRE', due, EVENTS_KEPT_MS)
return {leased_until, unpack(buckets)}
