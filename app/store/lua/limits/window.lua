-- Sorted sets of moments: exactly how many events a sliding window has.
--
-- pv:{l:<digest>}    sorted set: a limit over an address, a range of numbers, a client or all: token → moment

-- Return how many events there are in the last `period`, and how long until there is room for another among `count`.
local function used_of_set(key, now, count, period)
  local inside = redis.call('ZCOUNT', key, now - period + 1, '+inf')
  if inside < count then return inside, 0 end
  local oldest = redis.call('ZRANGE', key, -count, -count, 'WITHSCORES')
  return inside, oldest[2] + period - now
end

local function count_in_set(key, now, token, period)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - period)
  redis.call('ZADD', key, now, token)
  redis.call('PEXPIRE', key, period)
end
