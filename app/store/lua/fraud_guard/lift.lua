#!lua flags=allow-oom
-- End a block, and forget its level, because it was wrong. admit.lua describes the keys.
--
-- KEYS    1 list   2 block
-- ARGV    1 name of the range
-- RETURN  1, or 0 if there is no block
local list, block = unpack(KEYS)
local name = ARGV[1]

if tonumber(redis.call('HGET', block, 'until') or 0) <= now_ms() then return 0 end
redis.call('DEL', block)
redis.call('HDEL', list, name)
return 1
