#!lua flags=allow-oom
-- Erase a phone: the ids of its verifications, its calls, its failed checks, its operator. Its limits begin anew.
--
-- KEYS    1 phone
-- RETURN  1 if there was anything, else 0
local key = KEYS[1]

return redis.call('DEL', key)
