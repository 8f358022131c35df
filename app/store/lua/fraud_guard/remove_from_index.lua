#!lua flags=allow-oom
-- Remove a block that was lifted from the index, unless it is a later one. add_to_index.lua describes the key.
--
-- KEYS    1 index
-- ARGV    1 name of the range   2 when the block that was lifted would have ended
local index = KEYS[1]
local name, ends = unpack(ARGV)

local listed = redis.call('ZSCORE', index, name)
if listed and tonumber(listed) <= tonumber(ends) then
  redis.call('ZREM', index, name)
end
