#!lua flags=allow-oom
-- Deliver an event that was a dead letter. take.lua describes the key.
--
-- KEYS    1 retries
-- ARGV    1 event
local retries, event = KEYS[1], ARGV[1]

redis.call('ZADD', retries, now_ms(), event)
redis.call('PEXPIRE', retries, EVENTS_KEPT_MS)
