#!lua flags=allow-oom
-- Refund a call that definitely was not placed, so that what was there before it is there again. Run twice it changes
-- nothing more, for the number of a call is never used again. A cooldown that a later call began stays, and so do guesses.
--
-- KEYS    1 phone   2 record   3 stream of events, if the client has a webhook
-- ARGV    1 number of the call   2 lifetime of a call ms   3 token of the start that stored it, or '' for whoever did: of two
--         starts that name the same verification one is refused, and must not refund the call of the other
-- RETURN  1 if it was refunded by this, else 0

local number, lifetime, token = ARGV[1], ARGV[2], ARGV[3]
local record, phone = load(KEYS[2]), load(KEYS[1])
local reserved = record['o' .. number] or ''
if not record['t' .. number] or token ~= '' and reserved:match('%S*$') ~= token then
  return 0
end
local was_recorded = record['f' .. number] or record['t' .. number] ~= 'initiated'

local resend_at, streak, next_call = reserved:match('^(%d+) (%d+) (%d+)')
if resend_at and phone.r == resend_at then
  if streak == '0' then
    redis.call('HDEL', KEYS[1], 'n', 'r')
  else
    redis.call('HSET', KEYS[1], 'n', streak, 'r', next_call)
  end
end

if phone.w == rest_of_id(KEYS[2]) .. ':' .. number then
  redis.call('HDEL', KEYS[1], 'w')
end

local moment = int(record['x' .. number] - lifetime)
local other_calls, found = {}, false
for call in (phone.l or ''):gmatch('%d+') do
  if call == moment and not found then
    found = true
  else
    other_calls[#other_calls + 1] = call
  end
end
if #other_calls > 0 then
  redis.call('HSET', KEYS[1], 'l', table.concat(other_calls, ','))
else
  redis.call('HDEL', KEYS[1], 'l')
end

local fields = {}
for field in ('dlxtfwhikyo'):gmatch('.') do
  fields[#fields + 1] = field .. number
end
redis.call('HDEL', KEYS[2], unpack(fields))
if record.n == number then
  redis.call('HDEL', KEYS[2], 'r')
end
redis.call('HSET', KEYS[2], 'm', record.m + 1)

-- The verification again ends with the last of its other codes.
local others, expires = 0, 0
for other = 1, record.n do
  if tostring(other) ~= number and record['t' .. other] then
    others = others + 1
    expires = math.max(expires, record['x' .. other] or 0)
  end
end
local is_over = others > 0 and expires <= now_ms()
if expires > 0 then
  redis.call('PEXPIREAT', KEYS[2], int(expires))
end

-- Without a call it is gone, unless it came to its end, or its client was told of it.
if is_over or others == 0 and not record.s and not record.e then
  local rest, owner = rest_of_id(KEYS[2]), record.c .. ':' .. record.u
  local kept = {}
  for other in (phone[owner] or ''):gmatch('%x+') do
    if other ~= rest then
      kept[#kept + 1] = other
    end
  end
  if #kept > 0 then
    redis.call('HSET', KEYS[1], owner, table.concat(kept, ','))
  else
    redis.call('HDEL', KEYS[1], owner)
  end
  if phone.d == rest then
    redis.call('HDEL', KEYS[1], 'd')
  end
  redis.call('DEL', KEYS[2])
  redis.call('PUBLISH', 'pv:changes', verification_id(KEYS[2]))
  if KEYS[3] and record.e and not record.s then
    redis.call('ZADD', KEYS[3] .. ':expiry', int(expires), in_expiry(KEYS[2], record))
  end
elseif was_recorded then
  tell(KEYS[2], record.e and 'call.status_changed' or nil, KEYS[3])
else
  -- Whoever listens may have seen the call while the provider was asked.
  redis.call('PUBLISH', 'pv:changes', verification_id(KEYS[2]))
  if KEYS[3] then
    schedule_expiry(KEYS[2], record, KEYS[3])
  end
end
return 1
