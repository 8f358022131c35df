#!lua flags=allow-oom
-- Return how much of each limit is used, without changing anything.
--
-- KEYS    sorted sets of the limits
-- ARGV    1 the limits, a JSON array [[name, count, period] …]
-- RETURN  {{events in the last period, ms until there is room for another, or 0} …}
local keys, limits = KEYS, cjson.decode(ARGV[1])

local now, found = now_ms(), {}
for i, key in ipairs(keys) do
  local _, count, period = unpack(limits[i])
  found[i] = {used_of_set(key, now, count, period)}
end
return found
