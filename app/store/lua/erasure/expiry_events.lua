#!lua flags=allow-oom
-- Erase the scheduled expiry events of a phone; one step of a walk through all. webhooks/take.lua describes the key.
--
-- KEYS    1 expiry
-- ARGV    1 phone   2 cursor, '0' at first   3 about how many to examine
-- RETURN  {cursor of the next step, '0' after the last, how many were erased}
local expiry = KEYS[1]
local phone, cursor, count = unpack(ARGV)

local next_cursor, found = unpack(redis.call('ZSCAN', expiry, cursor, 'COUNT', count))
local erased = 0
for i = 1, #found, 2 do
  if found[i]:match('|([^|]*)$') == phone then
    erased = erased + redis.call('ZREM', expiry, found[i])
  end
end
return {next_cursor, erased}
