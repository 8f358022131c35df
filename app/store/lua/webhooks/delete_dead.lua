#!lua flags=allow-oom
-- Delete a dead letter. bury.lua describes the keys.
--
-- KEYS    1 dead   2 letters
-- ARGV    1 id
-- RETURN  1, or 0 if there is none
local dead, letters = unpack(KEYS)
local id = ARGV[1]

redis.call('HDEL', letters, id)
return redis.call('ZREM', dead, id)
