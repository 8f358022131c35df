#!lua flags=allow-oom
-- Take an event out of the stream for later, or for good. It is never in neither place, and never in two: whoever comes
-- second, because somebody else took the entry over, changes nothing. take.lua lists the keys.
--
-- KEYS    1 stream   2 retry   3 dead   4 letters
-- ARGV    1 group   2 entry   3 in how many ms it is tried again, or '' for never   4 attempts that failed
--         5 error of the last one   6 events that wait to be tried again, at most   7 dead ones, at most
--         8 ms that letters are kept
-- RETURN  'retry' | 'dead'    where it is now
--         'gone'              somebody else settled it

local now = now_ms()
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not entry or redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return 'gone'
end
redis.call('XDEL', KEYS[1], ARGV[2])

local id, letter = ARGV[2], {}
for i = 1, #entry[2], 2 do
  local field, value = entry[2][i], entry[2][i + 1]
  if field == 'event' then
    id = value
  elseif field ~= 'attempts' and field ~= 'error' then
    letter[#letter + 1] = field
    letter[#letter + 1] = value
  end
end
for _, part in ipairs({'event', id, 'attempts', ARGV[4], 'error', ARGV[5]}) do
  letter[#letter + 1] = part
end
redis.call('HSET', KEYS[4], id, cjson.encode(letter))
redis.call('PEXPIRE', KEYS[4], ARGV[8])

if ARGV[3] ~= '' and redis.call('ZCARD', KEYS[2]) < tonumber(ARGV[6]) then
  redis.call('ZADD', KEYS[2], int(now + ARGV[3]), id)
  redis.call('PEXPIRE', KEYS[2], ARGV[8])
  return 'retry'
end
redis.call('ZADD', KEYS[3], int(now), id)
redis.call('PEXPIRE', KEYS[3], ARGV[8])
for _, old in ipairs(redis.call('ZRANGE', KEYS[3], '-inf', int(now - ARGV[8]), 'BYSCORE', 'LIMIT', 0, 1000)) do
  redis.call('ZREM', KEYS[3], old)
  redis.call('HDEL', KEYS[4], old)
end
while redis.call('ZCARD', KEYS[3]) > tonumber(ARGV[7]) do
  redis.call('HDEL', KEYS[4], redis.call('ZPOPMIN', KEYS[3])[1])
end
return 'dead'
