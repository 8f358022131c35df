#!lua flags=allow-oom
-- Remove a call from the queue. schedule.lua describes the keys.
--
-- KEYS    1 due   2 attempts
-- ARGV    1 id of the call
local due, attempts = unpack(KEYS)
local call = ARGV[1]

redis.call('ZREM', due, call)
redis.call('HDEL', attempts, call)
