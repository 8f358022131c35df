-- Write what became of a call. A final state stays, and a call that was taken back does not return.
--
-- KEYS    1 record
-- ARGV    1 serial   2 state   3 provider's reference, or ''   4 provider's unknown word, or ''
-- RETURN  {'recorded', now, expires, record}
--         {'not_found'}

local key, serial = KEYS[1], ARGV[1]
local state = redis.call('HGET', key, 't' .. serial)
if redis.call('EXISTS', key) == 0 then
  return {'not_found'}
end

if state and not FINAL[state] then
  redis.call('HSET', key, 't' .. serial, ARGV[2])
  if ARGV[3] ~= '' then
    redis.call('HSET', key, 'f' .. serial, ARGV[3])
  end
  if ARGV[4] ~= '' then
    redis.call('HSET', key, 'w' .. serial, ARGV[4])
  else
    redis.call('HDEL', key, 'w' .. serial)
  end
  changed(key)
end
return {'recorded', int(now_ms()), redis.call('PEXPIRETIME', key), redis.call('HGETALL', key)}
