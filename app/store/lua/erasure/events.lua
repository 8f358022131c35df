#!lua flags=allow-oom
-- Erase the events of a phone that wait for delivery; one step of a walk through all. A delivery under way then finds
-- its event settled. webhooks/take.lua describes the key.
--
-- KEYS    1 stream
-- ARGV    1 phone   2 entry to begin with, '-' at first   3 how many to examine   4 group
-- RETURN  {entry to begin the next step with, or '' after the last, how many were erased}
local stream = KEYS[1]
local phone, first, count, group = unpack(ARGV)

local entries, erased = redis.call('XRANGE', stream, first, '+', 'COUNT', count), 0
for _, entry in ipairs(entries) do
  local id, fields = unpack(entry)
  for i = 1, #fields, 2 do
    if fields[i] == 'phone' and fields[i + 1] == phone then
      redis.call('XACK', stream, group, id)
      erased = erased + redis.call('XDEL', stream, id)
    end
  end
end
local last = #entries == tonumber(count) and entries[#entries][1]
return {last and '(' .. last or '', erased}
