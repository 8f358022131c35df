-- Let a call that was refused be made by another channel, with another code: the one before was never given to anybody.
--
-- KEYS    1 record   2 stream of events, if the client has a webhook
-- ARGV    1 serial   2 channel   3 code length   4 code digest, or ''   5 checks allowed
-- RETURN  {'rerouted', now, expires, record}
--         {'not_found'}   it expired, or is not pending any more, or is not new and so no place for a reverse call

local key, serial = KEYS[1], ARGV[1]
local record = load(key)
if record.s or not record['t' .. serial] then
  return {'not_found'}
elseif ARGV[2] == 'reverse_call' and serial ~= '1' then
  return {'not_found'} -- somebody else may have the id, which is all the proof of a reverse call
end

if KEYS[2] then
  redis.call('ZREM', KEYS[2] .. ':expiry', in_expiry(key, record))
end
give_code(key, serial, ARGV[2], ARGV[3], ARGV[4])
redis.call('HSET', key, 'g', math.max((record.b or 0) + 1, math.min(record.g, ARGV[5])))
tell(key, nil, KEYS[2])
return {'rerouted', int(now_ms()), redis.call('PEXPIRETIME', key), redis.call('HGETALL', key)}
