#!lua flags=allow-oom
-- Erase a phone.
--
-- KEYS    1 phone
-- RETURN  1, or 0 if nothing was stored of it
local key = KEYS[1]

return redis.call('DEL', key)
