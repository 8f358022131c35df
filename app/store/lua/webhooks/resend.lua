#!lua flags=allow-oom
-- Put dead letters back into the stream, with all their attempts before them. take.lua describes the keys.
--
-- KEYS    1 stream   2 dead   3 bodies
-- ARGV    1 event, or '' for the oldest   2 how many at most   3 only those given up by this moment, or '' for now
--         4 for how long dead letters are kept
-- RETURN  {how many are no longer dead, the moment}
local stream, dead, bodies = unpack(KEYS)
local event, most, moment, kept = unpack(ARGV)

local now = now_ms()
moment = moment ~= '' and moment or tostring(now)
local events = {event}
if event == '' then
  events = redis.call('ZRANGE', dead, now - kept, moment, 'BYSCORE', 'LIMIT', 0, most)
end

local count = 0
for _, id in ipairs(events) do
  local letter = redis.call('HGET', bodies, id)
  if redis.call('ZREM', dead, id) == 1 then
    count = count + 1
    redis.call('HDEL', bodies, id)
    if letter then
      local fields = cjson.decode(letter)
      fields.attempts = '0'
      add_to_stream(stream, fields)
    end
  end
end
return {count, moment}
