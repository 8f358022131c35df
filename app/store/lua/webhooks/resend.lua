#!lua flags=allow-oom
-- Deliver a dead letter again, with all its attempts before it. take.lua describes the keys.
--
-- KEYS    1 stream   2 dead   3 bodies
-- ARGV    1 event
-- RETURN  1, or 0 if it is not dead
local stream, dead, bodies = unpack(KEYS)
local event = ARGV[1]

if redis.call('ZREM', dead, event) == 0 then return 0 end
local letter = redis.call('HGET', bodies, event)
redis.call('HDEL', bodies, event)
if letter then
  local fields = cjson.decode(letter)
  fields.attempts = '0'
  add_to_stream(stream, fields)
end
return 1
