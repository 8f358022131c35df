#!lua flags=allow-oom
-- Erase the dead letters of a phone; one step of a walk through all. webhooks/add_dead.lua describes the keys.
--
-- KEYS    1 dead events   2 dead
-- ARGV    1 phone   2 cursor, '0' at first   3 about how many to examine
-- RETURN  {cursor of the next step, '0' after the last, how many were erased}
local dead_events, dead = unpack(KEYS)
local phone, cursor, count = unpack(ARGV)

local next_cursor, found = unpack(redis.call('HSCAN', dead_events, cursor, 'COUNT', count))
local erased = 0
for i = 1, #found, 2 do
  if phone_of_event(found[i + 1]) == phone then
    redis.call('ZREM', dead, found[i])
    erased = erased + redis.call('HDEL', dead_events, found[i])
  end
end
return {next_cursor, erased}
