-- Write what became of a call. It never goes back to an earlier stage, and one that was taken back does not return.
--
-- KEYS    1 record   2 stream of events, if the client has a webhook
-- ARGV    1 serial   2 state   3 provider's reference, or ''   4 provider's unknown word, or ''
--         5 digest and 6 length of the code that the provider chose, or '' and ''   7 number to dial, or ''
--         8 operator, or ''   9 token of the limits, if the call may be taken back later, or ''
-- RETURN  {'recorded', 1 if it has come to its end by this, else 0, now, expires, record}
--         {'not_found'}

local key, serial = KEYS[1], ARGV[1]
local record = load(key)
if not record.c then
  return {'not_found'}
end

local function keep(field, value)
  if value ~= '' then
    redis.call('HSET', key, field .. serial, value)
  end
end

local before, ended = record['t' .. serial], 0
if before and STAGE[before] < LAST_STAGE and STAGE[ARGV[2]] >= STAGE[before] then
  redis.call('HSET', key, 't' .. serial, ARGV[2])
  redis.call('HDEL', key, 'w' .. serial)
  keep('f', ARGV[3])
  keep('w', ARGV[4])
  keep('i', ARGV[7])
  keep('y', ARGV[9])
  if ARGV[5] ~= '' and not record.s then
    give_code(key, serial, record['h' .. serial], ARGV[6], ARGV[5])
  end
  if ARGV[8] ~= '' then
    redis.call('HSET', record_key(key, 'p:' .. record.q), 'o', ARGV[8])
  end
  ended = STAGE[ARGV[2]] == LAST_STAGE and 1 or 0
  local event = 'call.status_changed'
  if KEYS[2] and not record.e then
    redis.call('HSET', key, 'e', 1)
    event = 'verification.created'
  end
  local is_new = ARGV[3] ~= '' and ARGV[3] ~= record['f' .. serial]
  local word = redis.call('HGET', key, 'w' .. serial) or nil
  if before ~= ARGV[2] or is_new or word ~= record['w' .. serial] or event == 'verification.created' then
    tell(key, event, KEYS[2])
  end
end
return {'recorded', ended, int(now_ms()), redis.call('PEXPIRETIME', key), redis.call('HGETALL', key)}
