#!lua flags=allow-oom
-- List dead letters, the oldest first. take.lua describes the keys.
--
-- KEYS    1 dead   2 bodies
-- ARGV    1 for how long dead letters are kept
-- RETURN  {{when it was given up, its fields as a JSON object}…}
local dead, bodies = unpack(KEYS)
local kept = ARGV[1]

local found = {}
local events = redis.call('ZRANGE', dead, now_ms() - kept, '+inf', 'BYSCORE', 'WITHSCORES')
for i = 1, #events, 2 do
  local letter = redis.call('HGET', bodies, events[i])
  if letter then
    found[#found + 1] = {events[i + 1], letter}
  end
end
return found
