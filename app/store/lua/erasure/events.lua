#!lua flags=allow-oom
-- Erase the events of a phone; one step of a walk through all of a sorted set. A delivery under way then finds its event
-- settled. webhooks/take.lua describes the keys.
--
-- KEYS    1 outbox, or retries
-- ARGV    1 phone   2 cursor, '0' at first   3 about how many to examine
-- RETURN  {cursor of the next step, '0' after the last, how many were erased}
local key = KEYS[1]
local phone, cursor, count = unpack(ARGV)

local next_cursor, found = unpack(redis.call('ZSCAN', key, cursor, 'COUNT', count))
local erased = 0
for i = 1, #found, 2 do
  if phone_of_event(found[i]) == phone then
    erased = erased + redis.call('ZREM', key, found[i])
  end
end
return {next_cursor, erased}
