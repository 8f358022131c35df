#!lua flags=allow-oom
-- Return how long until a limit has room for another event; changes nothing.
--
-- KEYS    1 sorted set of the limit
-- ARGV    1 count   2 period ms
-- RETURN  ms to wait, or 0

local count, period = tonumber(ARGV[1]), ARGV[2]
local now = now_ms()
if redis.call('ZCOUNT', KEYS[1], '(' .. int(now - period), '+inf') < count then
  return 0
end
local oldest = redis.call('ZRANGE', KEYS[1], -count, -count, 'WITHSCORES')
return oldest[2] + period - now
