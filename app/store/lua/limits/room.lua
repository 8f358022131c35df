#!lua flags=allow-oom
-- Return how much of each limit is used, without changing anything.
--
-- KEYS    sorted sets of the limits
-- ARGV    count and period of each limit
-- RETURN  {{events in the last period, ms until there is room for another, or 0} …}
local keys, rules = KEYS, ARGV

local now, found = now_ms(), {}
for i, key in ipairs(keys) do
  found[i] = {used_of_set(key, now, rules[2 * i - 1] + 0, rules[2 * i] + 0)}
end
return found
