#!lua flags=allow-oom
-- End leases of buckets with what take.lua has returned. One that has changed since it was leased stays due. lease.lua
-- describes the keys.
--
-- KEYS    1 due   2 waiting
-- ARGV    1 until when they are leased   2… bucket, when its next event is due or '', how many were left waiting, of each bucket
local due, waiting = unpack(KEYS)
local leased_until = ARGV[1] + 0
local states = {select(2, unpack(ARGV))}

for i = 1, #states, 3 do
  local bucket, next_due, count = states[i], states[i + 1], states[i + 2]
  if tonumber(redis.call('ZSCORE', due, bucket)) == leased_until then
    if next_due == '' then
      redis.call('ZREM', due, bucket)
    else
      redis.call('ZADD', due, next_due, bucket)
    end
    if count == '0' then
      redis.call('HDEL', waiting, bucket)
    else
      redis.call('HSET', waiting, bucket, count)
    end
  end
end
redis.call('PEXPIRE', due, EVENTS_KEPT_MS)
redis.call('PEXPIRE', waiting, EVENTS_KEPT_MS)
