#!lua flags=allow-oom
-- Return how much of a limit is used, without changing anything.
--
-- KEYS    1 sorted set of the limit
-- ARGV    1 count   2 period
-- RETURN  {events in the last period, ms until there is room for another, or 0}
local key = KEYS[1]
local count, period = unpack(ARGV)

return {used_of_set(key, now_ms(), tonumber(count), period)}
