-- Count an event against each limit, if all have room.
--
-- KEYS    sorted sets of the limits
-- ARGV    1 the limits, a JSON array [[name, count, period] …]   2 token of the event
-- RETURN  {'counted', how many are left of each limit …} | {'full', number of a limit without room, ms to wait}
local keys, limits, token = KEYS, cjson.decode(ARGV[1]), ARGV[2]

local now, reply = now_ms(), {'counted'}
for i, key in ipairs(keys) do
  local _, count, period = unpack(limits[i])
  local inside, wait = used_of_set(key, now, count, period)
  if wait > 0 then return {'full', i, wait} end
  reply[i + 1] = count - inside - 1
end
for i, key in ipairs(keys) do
  local _, _, period = unpack(limits[i])
  count_in_set(key, now, token, period)
end
return reply
