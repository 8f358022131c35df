-- Undo a call that definitely did not happen. Run twice it changes nothing more, for serials are never used again. A
-- cooldown that a later call began stays: it ends at another moment.
--
-- KEYS    1 phone   2 record   3 stream of events, if the client has a webhook
-- ARGV    1 serial   2 lifetime of a call ms
-- RETURN  1 if it was undone by this, else 0

local record = load(KEYS[2])
local serial = ARGV[1]

if not record['t' .. serial] then
  return 0
end
local phone = load(KEYS[1])
local moment = int(record['x' .. serial] - ARGV[2])
local latest = record.n == serial
if latest and record.r and phone.r == record.r then
  if redis.call('HINCRBY', KEYS[1], 'n', -1) > 0 then
    redis.call('HSET', KEYS[1], 'r', moment)
  else
    redis.call('HDEL', KEYS[1], 'n', 'r')
  end
end
local others, found = {}, false
for other in (phone.l or ''):gmatch('%d+') do
  if other == moment and not found then
    found = true
  else
    others[#others + 1] = other
  end
end
if #others > 0 then
  redis.call('HSET', KEYS[1], 'l', table.concat(others, ','))
else
  redis.call('HDEL', KEYS[1], 'l')
end

for field in ('dlxtfwhikyo'):gmatch('.') do
  redis.call('HDEL', KEYS[2], field .. serial)
end
if latest then
  redis.call('HDEL', KEYS[2], 'r')
  if record['o' .. serial] then
    if KEYS[3] then
      redis.call('ZREM', KEYS[3] .. ':expiry', in_expiry(KEYS[2], record))
    end
    local channel, length, checks = record['o' .. serial]:match('(%S+) (%d+) (%d+)')
    redis.call('HSET', KEYS[2], 'h', channel, 'l', length, 'g', record.s and record.g or checks)
  end
end
redis.call('HSET', KEYS[2], 'm', record.m + 1)

-- The verification again ends with the last of its other codes.
local placed, expires = 0, 0
for other = 1, record.n do
  if tostring(other) ~= serial and record['t' .. other] then
    placed = placed + 1
    expires = math.max(expires, record['x' .. other] or 0)
  end
end
local over = placed > 0 and expires <= now_ms()
if expires > 0 then
  redis.call('PEXPIREAT', KEYS[2], int(expires))
end

-- Without a call it is forgotten, unless guesses were made on it: those stay counted, or a provider that refuses every
-- call would let somebody guess for ever at codes that were never spoken.
if over or placed == 0 and not record.s and not record.b and not record.e then
  local owner = record.c .. ':' .. record.u
  if phone[owner] == rest_of_id(KEYS[2]) then
    redis.call('HDEL', KEYS[1], owner)
  end
  redis.call('DEL', KEYS[2])
  redis.call('PUBLISH', 'pv:changes', verification_id(KEYS[2]))
else
  tell(KEYS[2], record.e and 'call.status_changed' or nil, KEYS[3])
end
return 1
