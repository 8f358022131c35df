#!lua flags=allow-oom
-- Return the state of delivery, in constant time. take.lua describes the keys.
--
-- KEYS    1 stream   2 expiry   3 retry   4 dead
-- ARGV    1 for how long dead letters are kept
-- RETURN  {how long the oldest event has waited beyond its time, how many wait for it or for a retry, are dead}
local stream, expiry, retry, dead = unpack(KEYS)
local kept = ARGV[1]

local now = now_ms()
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local since = first and math.min(now, tonumber(first[1]:match('^%d+'))) or now
for _, key in ipairs({expiry, retry}) do
  since = math.min(since, tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or now))
end
local pending = redis.call('XLEN', stream) + redis.call('ZCARD', retry)
return {now - since, pending, redis.call('ZCOUNT', dead, now - kept, '+inf')}
