#!lua flags=allow-oom
-- Forget a phone: its verifications' names, its calls, its wrong codes, its operator. Its limits begin anew.
--
-- KEYS    1 phone
-- ARGV    none
-- RETURN  1 if there was anything, else 0

return redis.call('DEL', KEYS[1])
