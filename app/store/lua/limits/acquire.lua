-- Count an event against each limit, if all have room.
--
-- KEYS    sorted sets of the limits
-- ARGV    count and period of each limit   last: token of the event
-- RETURN  {'counted', how many are left of each limit …} | {'full', number of a limit without room, ms to wait}
local keys, rules, token = KEYS, ARGV, ARGV[#ARGV]

local now, reply = now_ms(), {'counted'}
for i, key in ipairs(keys) do
  local count, period = rules[2 * i - 1] + 0, rules[2 * i] + 0
  local inside, wait = used_of_set(key, now, count, period)
  if wait > 0 then return {'full', i, wait} end
  reply[i + 1] = count - inside - 1
end
for i, key in ipairs(keys) do
  count_in_set(key, now, token, rules[2 * i])
end
return reply
