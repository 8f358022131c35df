#!lua flags=allow-oom
-- Read the counts of some hours or days.
--
-- KEYS    1 any key of the slot
-- ARGV    1 'h' or 'd'   2 the first, in hours or days since 1970   3 the last
-- RETURN  {{number, {name, counts …}} of each with any …}
local any_key = KEYS[1]
local kind, first, last = unpack(ARGV)

local found = {}
for number = tonumber(first), tonumber(last) do
  local counts = redis.call('HGETALL', key_beside(any_key, kind .. ':' .. number))
  if #counts > 0 then
    found[#found + 1] = {number, counts}
  end
end
return found
