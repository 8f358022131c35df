#!lua flags=allow-oom
-- Read the journal of a bucket.
--
-- KEYS    1 journal
-- ARGV    1 id of the first and 2 of the last entry   3 how many at most
-- RETURN  {id, text, …}, the oldest first
local journal = KEYS[1]
local first, last, most = unpack(ARGV)

local found = {}
for _, entry in ipairs(redis.call('XRANGE', journal, first, last, 'COUNT', most)) do
  found[#found + 1] = entry[1]
  found[#found + 1] = entry[2][2]
end
return found
