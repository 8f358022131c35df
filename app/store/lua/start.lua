-- Store the digest of a call about to be placed: of a new verification, or of the pending one (a resend).
--
-- KEYS    1 phone   2 record of a new verification   3 stream of events, if the client has a webhook
-- ARGV    1 client   2 purpose   3 phone   4 channel   5 code length   6 code digest, or ''   7 rest of the new id
--         8 lifetime ms   9 calls allowed   10 checks allowed   11 failed checks of a phone allowed   12 in how many ms
--         (a test: 'test' in place of 11, and every start makes a new verification)
--         13 number of cooldowns, and they: ms…   number of limits of calls to a phone, and they: name, count, ms…
-- RETURN  {'started', rest of the id, now, expires, record, {calls left of each limit…}}
--         {'cooldown', rest of the pending id or '', ms to wait}
--         {'calls_exhausted' | 'locked', ms to wait}
--         {'limited', name of the limit, ms to wait}

local now = now_ms()
local lifetime = tonumber(ARGV[8])
local owner = ARGV[1] .. ':' .. ARGV[2]
local first_cooldown, cooldowns = 14, tonumber(ARGV[13])
local longest_cooldown = ARGV[first_cooldown + cooldowns - 1]
local first_limit = first_cooldown + cooldowns + 1

local phone = load(KEYS[1])
local next_call = tonumber(phone.r or 0)
local id = phone[owner] or ''
local key = record_key(KEYS[2], id)
local record = id ~= '' and load(key) or {}
local ends = redis.call('PEXPIRETIME', key)

local test = ARGV[11] == 'test'

if record.s == 'locked' and not record.z and not test then
  return {'locked', ends - now}
end
local pending = record.c and not record.s and not record.z and not test
-- Of a reverse call the id is all the proof of who asked for it. So it is a verification of its own, which is not found
-- by phone and which no other call joins: nobody is told the id but who asked.
local by_id = ARGV[4] == 'reverse_call' and not test
local resend = pending and not by_id
if resend and tonumber(record.m) <= 0 then
  return {'calls_exhausted', math.max(ends, next_call) - now}
end
if next_call > now then
  return {'cooldown', pending and id or '', next_call - now}
end
-- And there is one of a phone at a time, whoever asks: the person who dials must not confirm somebody else's with it.
if by_id and phone.d then
  local other = record_key(KEYS[2], phone.d)
  local waiting = load(other)
  if waiting.c and not waiting.s then
    return {'cooldown', '', redis.call('PEXPIRETIME', other) - now}
  end
end

-- A code that nobody may check is not worth a call.
if not test then
  local failed = recent(phone.b, now, ARGV[12])
  local _, wait = used(failed, now, tonumber(ARGV[11]), ARGV[12])
  if wait > 0 then
    return {'limited', 'failed_checks_per_phone', wait}
  end
end
local longest = 0
for i = first_limit, #ARGV, 3 do
  longest = math.max(longest, ARGV[i + 2])
end
local calls = recent(phone.l, now, longest)
local left = {}
for i = first_limit, #ARGV, 3 do
  local inside, wait_for_call = used(calls, now, tonumber(ARGV[i + 1]), ARGV[i + 2])
  if wait_for_call > 0 then
    return {'limited', ARGV[i], wait_for_call}
  end
  left[#left + 1] = ARGV[i + 1] - inside - 1
end

if not resend then
  id, key = ARGV[7], KEYS[2]
  record = {n = 0, m = by_id and 1 or ARGV[9]}
  redis.call('HSET', key, 'c', ARGV[1], 'u', ARGV[2], 'p', ARGV[3], 'q', rest_of_id(KEYS[1]), 'g', ARGV[10],
    'a', int(now))
  if test then
    redis.call('HSET', key, 'z', 1)
  end
else
  -- A channel that allows fewer checks makes the budget smaller, but its own code can be checked once.
  redis.call('HSET', key, 'g', math.max((record.b or 0) + 1, math.min(record.g, ARGV[10])))
  if KEYS[3] then
    redis.call('ZREM', KEYS[3] .. ':expiry', in_expiry(key, record))
  end
end

-- The streak outlives its cooldown by the longest one: waiting for it to be forgotten is never faster than obeying.
local remembered = phone.n and next_call + longest_cooldown > now
local streak = remembered and phone.n + 1 or 1
local cooldown = tonumber(ARGV[first_cooldown + math.min(streak, cooldowns) - 1])
local serial = record.n + 1
if resend then
  redis.call('HSET', key, 'o' .. serial, table.concat({record.h, record.l, record.g}, ' '))
end
local expires = now + lifetime
local resend_at = now + cooldown
redis.call('HSET', key, 'n', serial, 'm', record.m - 1, 'r', int(resend_at), 'x' .. serial, int(expires),
  't' .. serial, 'initiated')
give_code(key, serial, ARGV[4], ARGV[5], ARGV[6])
redis.call('PEXPIREAT', key, int(expires))
tell(key, nil, KEYS[3])

redis.call('HSET', KEYS[1], 'n', streak, 'r', int(resend_at), by_id and 'd' or owner, id)
if longest > 0 then
  calls[#calls + 1] = now
  redis.call('HSET', KEYS[1], 'l', write_log(calls))
end
keep_until(KEYS[1], math.max(expires, resend_at + longest_cooldown, now + longest))

return {'started', id, int(now), int(expires), redis.call('HGETALL', key), left}
