#!lua flags=allow-oom
-- Delete entries of a journal, and the journal with its last one. Repeated, it changes nothing.
--
-- KEYS    1 journal
-- ARGV    ids of entries
-- RETURN  how many there were
local journal, ids = KEYS[1], ARGV

local deleted = redis.call('XDEL', journal, unpack(ids))
if #redis.call('XRANGE', journal, '-', '+', 'COUNT', 1) == 0 then
  redis.call('DEL', journal)
end
return deleted
