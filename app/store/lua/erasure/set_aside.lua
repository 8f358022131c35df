#!lua flags=allow-oom
-- Erase the events of a phone that wait for another try or are dead; one step of a walk through all. webhooks/take.lua
-- describes the keys.
--
-- KEYS    1 bodies   2 retry   3 dead
-- ARGV    1 phone   2 cursor, '0' at first   3 about how many to examine
-- RETURN  {cursor of the next step, '0' after the last, how many were erased}
local bodies, retry, dead = unpack(KEYS)
local phone, cursor, count = unpack(ARGV)

local next_cursor, found = unpack(redis.call('HSCAN', bodies, cursor, 'COUNT', count))
local erased = 0
for i = 1, #found, 2 do
  local event = found[i]
  if cjson.decode(found[i + 1]).phone == phone then
    redis.call('ZREM', retry, event)
    redis.call('ZREM', dead, event)
    erased = erased + redis.call('HDEL', bodies, event)
  end
end
return {next_cursor, erased}
