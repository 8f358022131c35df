#!lua flags=allow-oom
-- End a block, and forget its level, because it was wrong. conversions.lua describes the key.
--
-- KEYS    1 block of the range
-- RETURN  the moment at which it would have ended, or 0 if there is no block
local key = KEYS[1]

local text = redis.call('GET', key)
local block = text and cjson.decode(text)
if not block or block[2] <= now_ms() then return 0 end
redis.call('DEL', key)
return block[2]
