-- Store the digest of a call about to be placed: of a new verification, or of the pending one (a resend).
--
-- KEYS    1 phone   2 record of a new verification
-- ARGV    1 client   2 purpose   3 phone   4 channel   5 code length   6 code digest   7 rest of the new id
--         8 lifetime ms   9 calls allowed   10 checks allowed   11… cooldowns ms
-- RETURN  {'started', rest of the id, now, record}
--         {'cooldown', rest of the pending id or '', ms to wait}
--         {'calls_exhausted' | 'locked', ms to wait}

local now = now_ms()
local lifetime = tonumber(ARGV[8])
local owner = ARGV[1] .. ':' .. ARGV[2]

local phone = load(KEYS[1])
local next_call = tonumber(phone.r or 0)
local id = phone[owner] or ''
local key = record_key(KEYS[2], id)
local record = id ~= '' and load(key) or {}

if record.s == 'locked' then
  return {'locked', record.e - now}
end
local resend = record.c and not record.s
if resend and tonumber(record.m) <= 0 then
  return {'calls_exhausted', math.max(record.e, next_call) - now}
end
if next_call > now then
  return {'cooldown', resend and id or '', next_call - now}
end

if not resend then
  id, key = ARGV[7], KEYS[2]
  record = {n = 0, k = 0, m = ARGV[9]}
  redis.call('HSET', key, 'c', ARGV[1], 'u', ARGV[2], 'p', ARGV[3], 'l', ARGV[5], 'g', ARGV[10], 'a', int(now))
end

local streak = (phone.n or 0) + 1
local cooldown = tonumber(ARGV[math.min(10 + streak, #ARGV)])
local serial = record.n + 1
local expires = now + lifetime
local resend_at = now + cooldown
redis.call('HSET', key, 'h', ARGV[4], 'n', serial, 'k', record.k + 1, 'm', record.m - 1,
  'e', int(expires), 'r', int(resend_at),
  'd' .. serial, held_digest(key, ARGV[6]), 'x' .. serial, int(expires), 't' .. serial, 'initiated')
redis.call('PEXPIREAT', key, int(expires))

-- The streak outlives its cooldown by the longest one: waiting for it to be forgotten is never faster than obeying.
local forgotten = math.max(expires, resend_at + ARGV[#ARGV], redis.call('PEXPIRETIME', KEYS[1]))
redis.call('HSET', KEYS[1], 'n', streak, 'r', int(resend_at), owner, id)
redis.call('PEXPIREAT', KEYS[1], int(forgotten))

return {'started', id, int(now), redis.call('HGETALL', key)}
