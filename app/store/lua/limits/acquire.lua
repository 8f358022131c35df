-- Count an event against a limit, if there is room.
--
-- KEYS    1 sorted set of the limit
-- ARGV    1 token of the event   2 count   3 period
-- RETURN  {1, how many are left} | {0, ms to wait}
local key = KEYS[1]
local token, count, period = unpack(ARGV)

local now = now_ms()
local inside, wait = used_of_set(key, now, tonumber(count), period)
if wait > 0 then return {0, wait} end
count_in_set(key, now, token, period)
return {1, count - inside - 1}
