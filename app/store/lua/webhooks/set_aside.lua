#!lua flags=allow-oom
-- Move an event out of the stream until its next try, or among the dead. It is always in exactly one place: a worker
-- whose entry was taken over changes nothing. take.lua describes the keys.
--
-- KEYS    1 stream   2 retry   3 dead   4 bodies
-- ARGV    1 group   2 entry   3 time until the next try, or '' for none   4 attempts that failed
--         5 error of the last one   6 events that wait for a retry, at most   7 dead ones, at most
--         8 for how long dead letters are kept
-- RETURN  'retry' | 'dead'    where it is now
--         'gone'              another worker settled it
local stream, retry, dead, bodies = unpack(KEYS)
local group, entry, pause, attempts, last_error, most_retries, most_dead, kept = unpack(ARGV)

local now = now_ms()
local found = redis.call('XRANGE', stream, entry, entry)[1]
if not found or redis.call('XACK', stream, group, entry) == 0 then return 'gone' end
redis.call('XDEL', stream, entry)

local letter, fields = {event = entry}, found[2]
for i = 1, #fields, 2 do
  letter[fields[i]] = fields[i + 1]
end
letter.attempts, letter.error = attempts, last_error
local id = letter.event
redis.call('HSET', bodies, id, cjson.encode(letter))
redis.call('PEXPIRE', bodies, kept)

if pause ~= '' and redis.call('ZCARD', retry) < tonumber(most_retries) then
  redis.call('ZADD', retry, now + pause, id)
  redis.call('PEXPIRE', retry, kept)
  return 'retry'
end
redis.call('ZADD', dead, now, id)
redis.call('PEXPIRE', dead, kept)
for _, old in ipairs(redis.call('ZRANGE', dead, '-inf', now - kept, 'BYSCORE', 'LIMIT', 0, 1000)) do
  redis.call('ZREM', dead, old)
  redis.call('HDEL', bodies, old)
end
while redis.call('ZCARD', dead) > tonumber(most_dead) do
  redis.call('HDEL', bodies, redis.call('ZPOPMIN', dead)[1])
end
return 'dead'
