#!lua flags=allow-oom
-- Return the block of a range, or the report of a client. conversions.lua describes it.
--
-- KEYS    1 limit on the calls of the range or client
-- RETURN  {since, ends, level, calls, successes}, or {} if there is none now
local key = KEYS[1]

local limit = load_limit(key)
return is_blocked(limit, now_ms()) and limit.block or {}
