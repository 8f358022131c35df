#!lua flags=allow-oom
-- Tell for how long a range is blocked; changes nothing.
--
-- KEYS    1 block of the range
-- ARGV    none
-- RETURN  ms to wait, or 0

return math.max(0, (redis.call('HGET', KEYS[1], 'r') or 0) - now_ms())
