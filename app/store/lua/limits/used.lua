#!lua flags=allow-oom
-- Return how much of a limit is used, and change nothing.
--
-- KEYS    1 sorted set of the limit
-- ARGV    1 period ms
-- RETURN  events in the last period

return redis.call('ZCOUNT', KEYS[1], '(' .. int(now_ms() - ARGV[1]), '+inf')
