-- Count an event against a limit, if there is room.
--
-- KEYS    1 sorted set of the limit
-- ARGV    1 token of the event   2 count   3 period ms
-- RETURN  {1, how many are left}
--         {0, ms to wait}

local now = now_ms()
local count, period = tonumber(ARGV[2]), ARGV[3]
local inside, wait = used_of_set(KEYS[1], now, count, period)
if wait > 0 then
  return {0, wait}
end
count_in_set(KEYS[1], now, ARGV[1], period)
return {1, count - inside - 1}
