#!lua flags=allow-oom
-- List a part of an index: names whose block has not ended, those that end first before the others. add_to_index.lua
-- describes the key.
--
-- KEYS    1 index
-- ARGV    1 how many to skip   2 how many at most
-- RETURN  {name …}
local index = KEYS[1]
local skipped, most = unpack(ARGV)

return redis.call('ZRANGE', index, '(' .. now_ms(), '+inf', 'BYSCORE', 'LIMIT', skipped, most)
