#!lua flags=allow-oom
-- Return how long the call that is longest due has waited to be claimed. schedule.lua describes the key.
--
-- KEYS    1 due
-- RETURN  ms; 0 if none is due
local due = KEYS[1]

local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
return first[2] and math.max(0, now_ms() - first[2]) or 0
