#!lua flags=allow-oom
-- End a block, and forget its level, because it was wrong. admit.lua describes the key.
--
-- KEYS    1 blocks
-- ARGV    1 name of the range
-- RETURN  1, or 0 if there is no block
local blocks, name = KEYS[1], ARGV[1]

local entry = redis.call('HGET', blocks, name)
if not entry or cjson.decode(entry).ends <= now_ms() then return 0 end
return redis.call('HDEL', blocks, name)
