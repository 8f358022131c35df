#!lua flags=allow-oom
-- List the blocked ranges and the reported clients, and drop the names of those that are forgotten. admit.lua describes
-- the keys.
--
-- KEYS    1 list
-- RETURN  {{name, since, until, level, calls, successes}…}
local list = KEYS[1]

local now, found = now_ms(), {}
for _, name in ipairs(redis.call('HKEYS', list)) do
  local entry = load(list:match('^pv:{guard}:') .. 'b:' .. name)
  if not entry['until'] then
    redis.call('HDEL', list, name)
  elseif tonumber(entry['until']) > now then
    found[#found + 1] = {name, entry.since, entry['until'], entry.level, entry.calls, entry.successes}
  end
end
return found
