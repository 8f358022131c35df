#!lua flags=allow-oom
-- Return the block of a range, or the report of a client. conversions.lua describes the key.
--
-- KEYS    1 block of the range or client
-- RETURN  {since, ends, level, calls, successes}, or {} if there is none now
local key = KEYS[1]

local text = redis.call('GET', key)
local block = text and cjson.decode(text)
return block and block[2] > now_ms() and block or {}
