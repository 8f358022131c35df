#!lua flags=allow-oom
-- Make an event a dead letter. Repeated, it changes nothing but the moment and the text.
--
-- {webhooks}:dead         sorted set: id of an event → when it was given up
-- {webhooks}:dead_events  hash: id → the event, as take.lua describes it
--
-- KEYS    1 dead   2 dead_events
-- ARGV    1 id   2 event   3 dead letters, at most   4 for how long they are kept
local dead, dead_events = unpack(KEYS)
local id, event, most_dead, kept = unpack(ARGV)

local now = now_ms()
local old = redis.call('ZRANGE', dead, '-inf', now - kept, 'BYSCORE', 'LIMIT', 0, 1000)
local is_new = not redis.call('HGET', dead_events, id)
if #old == 0 and is_new and redis.call('ZCARD', dead) >= tonumber(most_dead) then
  old = redis.call('ZRANGE', dead, 0, 0)
end
for _, other in ipairs(old) do
  redis.call('ZREM', dead, other)
  redis.call('HDEL', dead_events, other)
end
redis.call('ZADD', dead, now, id)
redis.call('HSET', dead_events, id, event)
redis.call('PEXPIRE', dead, kept)
redis.call('PEXPIRE', dead_events, kept)
