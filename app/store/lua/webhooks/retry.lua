#!lua flags=allow-oom
-- Retry an event that was taken, after a pause; or keep it for as long as it takes to make it a dead letter, which is in
-- another slot. take.lua describes the key.
--
-- KEYS    1 retries
-- ARGV    1 event   2 the same with its attempts and the error of the last   3 pause, or '' for a dead letter
--         4 time after which an event is taken again   5 events that wait for a retry, at most
-- RETURN  'retry' | 'dead'    what is to become of it
--         'gone'              another worker settled it
local retries = KEYS[1]
local event, failed_event, pause, claim_after, most_retries = unpack(ARGV)

local count = redis.call('ZCARD', retries)
if redis.call('ZREM', retries, event) == 0 then return 'gone' end
local is_dead = pause == '' or count > tonumber(most_retries)
redis.call('ZADD', retries, now_ms() + (is_dead and claim_after or pause), failed_event)
redis.call('PEXPIRE', retries, EVENTS_KEPT_MS)
return is_dead and 'dead' or 'retry'
