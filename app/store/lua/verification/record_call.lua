-- Write what became of a call. It never goes back to an earlier stage, and one that was refunded does not return.
--
-- KEYS    1 record   2 stream of events, if the client has a webhook
-- ARGV    1 number of the call   2 state   3 provider's reference, or ''   4 provider's unknown word, or ''
--         5 digest and 6 length of the code that the provider chose, or '' and ''   7 number to dial, or ''
--         8 operator, or ''   9 token of the limits, if the call may be refunded later, or ''
-- RETURN  {'recorded', 1 if it has come to its end by this, else 0, now, expires, record}
--         {'not_found'}

local key, number, state, ref, word = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local code_digest, code_length, dial, operator, limits_token = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local record = load(key)
if not record.c then
  return {'not_found'}
end

local function keep(field, value)
  if value ~= '' then
    redis.call('HSET', key, field .. number, value)
  end
end

local before, ended = record['t' .. number], 0
if before and STAGE[before] < LAST_STAGE and STAGE[state] >= STAGE[before] then
  local is_first = not record['f' .. number] and before == 'initiated'
  redis.call('HSET', key, 't' .. number, state)
  redis.call('HDEL', key, 'w' .. number)
  keep('f', ref)
  keep('w', word)
  keep('i', dial)
  keep('y', limits_token)
  if code_digest ~= '' and not record.s then
    redis.call('HSET', key, 'd' .. number, held_digest(key, code_digest), 'l' .. number, code_length)
  end
  if operator ~= '' then
    redis.call('HSET', record_key(key, 'p:' .. record.q), 'o', operator)
  end

  -- Now that the call was placed, or may have been, the verification is by its channel.
  if is_first then
    redis.call('HDEL', record_key(key, 'p:' .. record.q), 'w')
    if KEYS[2] then
      redis.call('ZREM', KEYS[2] .. ':expiry', in_expiry(key, record))
    end
    local length = code_digest ~= '' and code_length or record['l' .. number]
    redis.call('HSET', key, 'h', record['h' .. number], 'l', length)
    local checks = tonumber((record['o' .. number] or ''):match('^%d+ %d+ %d+ (%d+)'))
    -- One that allows fewer checks makes the budget smaller, but its own code can be checked once.
    if checks and checks < tonumber(record.g) and not record.s then
      redis.call('HSET', key, 'g', math.max((record.b or 0) + 1, checks))
    end
  end
  if state ~= 'unconfirmed' then
    redis.call('HDEL', key, 'o' .. number)
  end

  ended = STAGE[state] == LAST_STAGE and 1 or 0
  local event = 'call.status_changed'
  if KEYS[2] and not record.e then
    redis.call('HSET', key, 'e', 1)
    event = 'verification.created'
  end
  local is_new_ref = ref ~= '' and ref ~= record['f' .. number]
  local is_new_word = (redis.call('HGET', key, 'w' .. number) or nil) ~= record['w' .. number]
  if before ~= state or is_new_ref or is_new_word or is_first or event == 'verification.created' then
    tell(key, event, KEYS[2])
  end
end
return {'recorded', ended, int(now_ms()), redis.call('PEXPIRETIME', key), redis.call('HGETALL', key)}
