#!lua flags=allow-oom
-- Return how delivery stands, at the same small cost however much there is.
--
-- KEYS    1 stream   2 expiry   3 retry   4 dead
-- ARGV    1 ms that letters are kept
-- RETURN  {ms that the oldest event has waited beyond its time, in the stream, waiting for another try, dead}

local now = now_ms()
local since = now
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if first then
  since = math.min(since, tonumber(first[1]:match('^%d+')))
end
for i = 2, 3 do
  local earliest = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  since = math.min(since, tonumber(earliest[2] or now))
end
local dead = redis.call('ZCOUNT', KEYS[4], int(now - ARGV[1]), '+inf')
return {now - since, redis.call('XLEN', KEYS[1]), redis.call('ZCARD', KEYS[3]), dead}
