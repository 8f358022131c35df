#!lua flags=allow-oom
-- List the ranges that are blocked and the clients that are reported; drop the names of those that are forgotten.
--
-- KEYS    1 list
-- ARGV    none
-- RETURN  {{name, since, until, level, calls, successes}…}

local now = now_ms()
local found = {}
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  local entry = load(KEYS[1]:match('^pv:{guard}:') .. 'b:' .. name)
  if not entry.r then
    redis.call('HDEL', KEYS[1], name)
  elseif tonumber(entry.r) > now then
    found[#found + 1] = {name, entry.a, entry.r, entry.k, entry.c, entry.s}
  end
end
return found
