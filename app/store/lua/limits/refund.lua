#!lua flags=allow-oom
-- Refund an event that did not happen. Harmless when repeated.
--
-- KEYS    1 sorted set of the limit
-- ARGV    1 token of the event
local key, token = KEYS[1], ARGV[1]

redis.call('ZREM', key, token)
