#!lua flags=allow-oom
-- List the blocked ranges and the reported clients, and drop those that are forgotten. admit.lua describes the key.
--
-- KEYS    1 blocks
-- ARGV    1 for how long after a block its level is remembered
-- RETURN  {{name, block as JSON}…}
local blocks, memory = KEYS[1], ARGV[1]

local now, found = now_ms(), {}
for name, entry in pairs(load(blocks)) do
  local ends = cjson.decode(entry).ends
  if ends > now then
    found[#found + 1] = {name, entry}
  elseif ends + memory <= now then
    redis.call('HDEL', blocks, name)
  end
end
return found
