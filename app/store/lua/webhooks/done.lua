#!lua flags=allow-oom
-- Delete an event that was taken: it was delivered, or no endpoint wants it, or it is a dead letter. take.lua describes
-- the key.
--
-- KEYS    1 retries
-- ARGV    1 event
-- RETURN  1, or 0 if it was not there
local retries, event = KEYS[1], ARGV[1]

return redis.call('ZREM', retries, event)
