#!lua flags=allow-oom
-- Delete entries of a journal. Repeated, it changes nothing.
--
-- KEYS    1 journal
-- ARGV    ids of entries
-- RETURN  how many there were
local journal, ids = KEYS[1], ARGV

return redis.call('XDEL', journal, unpack(ids))
