#!lua flags=allow-oom
-- List dead letters, the oldest first; one step of a walk through all. add_dead.lua describes the keys.
--
-- KEYS    1 dead   2 dead_events
-- ARGV    1 for how long dead letters are kept   2 how many to skip   3 how many at most
-- RETURN  {id, when it was given up, event, …}
local dead, dead_events = unpack(KEYS)
local kept, skipped, most = unpack(ARGV)

local found = {}
local ids = redis.call('ZRANGE', dead, now_ms() - kept, '+inf', 'BYSCORE', 'LIMIT', skipped, most, 'WITHSCORES')
for i = 1, #ids, 2 do
  local event = redis.call('HGET', dead_events, ids[i])
  found[#found + 1] = {ids[i], ids[i + 1], event or ''}
end
return found
