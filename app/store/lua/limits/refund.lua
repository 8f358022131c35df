#!lua flags=allow-oom
-- Take an event back: it did not happen. Run twice it changes nothing more.
--
-- KEYS    1 sorted set of the limit
-- ARGV    1 token of the event
-- RETURN  nothing

redis.call('ZREM', KEYS[1], ARGV[1])
