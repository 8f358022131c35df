#!lua flags=allow-oom
-- Forget the events of a phone that wait for delivery; a step of a walk through all. A delivery that is under way finds
-- its event settled. webhooks/take.lua says what is where.
--
-- KEYS    1 stream
-- ARGV    1 phone   2 entry to begin with, '-' at first   3 how many to look at   4 group
-- RETURN  {entry to begin the next step with, or '' if this was the last, how many were forgotten}

local entries = redis.call('XRANGE', KEYS[1], ARGV[2], '+', 'COUNT', ARGV[3])
local forgotten = 0
for _, entry in ipairs(entries) do
  for field = 1, #entry[2], 2 do
    if entry[2][field] == 'phone' and entry[2][field + 1] == ARGV[1] then
      redis.pcall('XACK', KEYS[1], ARGV[4], entry[1]) -- there may be no group yet
      forgotten = forgotten + redis.call('XDEL', KEYS[1], entry[1])
    end
  end
end
local last = #entries == tonumber(ARGV[3]) and entries[#entries][1]
return {last and '(' .. last or '', forgotten}
