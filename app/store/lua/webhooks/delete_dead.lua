#!lua flags=allow-oom
-- Delete a dead letter. add_dead.lua describes the keys.
--
-- KEYS    1 dead   2 dead_events
-- ARGV    1 id
-- RETURN  1, or 0 if there is none
local dead, dead_events = unpack(KEYS)
local id = ARGV[1]

redis.call('HDEL', dead_events, id)
return redis.call('ZREM', dead, id)
