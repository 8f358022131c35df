#!lua flags=allow-oom
-- Return how many events count against a limit now. window.lua describes the key.
--
-- KEYS    1 limit
-- ARGV    1 its period
local key, period = KEYS[1], ARGV[1]

local limit = read_limit(redis.call('GET', key))
slide(limit, now_ms(), period + 0)
return limit.total
