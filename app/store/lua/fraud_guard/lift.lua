#!lua flags=allow-oom
-- End a block, and forget its level, because it was wrong. conversions.lua describes it.
--
-- KEYS    1 limit on the calls of the range
-- RETURN  the moment at which it would have ended, or 0 if there is no block
local key = KEYS[1]

local limit = load_limit(key)
if not is_blocked(limit, now_ms()) then return 0 end
local ends = limit.block[2]
limit.block = nil
save_limit(key, limit)
return ends
