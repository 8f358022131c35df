-- Undo a call that definitely did not happen. Run twice it changes nothing more, for serials are never used again. A
-- cooldown that a later call began stays: it ends at another moment.
--
-- KEYS    1 phone   2 record
-- ARGV    1 serial   2 client:purpose   3 rest of the id   4 moment of the call   5 end of the cooldown that it began
-- RETURN  nothing

local record = load(KEYS[2])
local serial = ARGV[1]

if not record['t' .. serial] then
  return
end
local phone = load(KEYS[1])
if phone.r == ARGV[5] then
  if redis.call('HINCRBY', KEYS[1], 'n', -1) > 0 then
    redis.call('HSET', KEYS[1], 'r', ARGV[4])
  else
    redis.call('HDEL', KEYS[1], 'n', 'r')
  end
end
local others, found = {}, false
for moment in (phone.l or ''):gmatch('%d+') do
  if moment == ARGV[4] and not found then
    found = true
  else
    others[#others + 1] = moment
  end
end
if #others > 0 then
  redis.call('HSET', KEYS[1], 'l', table.concat(others, ','))
else
  redis.call('HDEL', KEYS[1], 'l')
end

redis.call('HDEL', KEYS[2], 'd' .. serial, 'x' .. serial, 't' .. serial, 'f' .. serial, 'w' .. serial, 'r')
redis.call('HSET', KEYS[2], 'm', record.m + 1)
changed(KEYS[2])

-- The verification again ends with the last of its other codes.
local placed, expires = 0, 0
for other = 1, record.n do
  if tostring(other) ~= serial and record['t' .. other] then
    placed = placed + 1
    expires = math.max(expires, record['x' .. other] or 0)
  end
end
if expires > 0 then
  redis.call('PEXPIREAT', KEYS[2], int(expires))
end

-- Without a call it is forgotten, unless guesses were made on it: those stay counted, or a provider that refuses every
-- call would let somebody guess for ever at codes that were never spoken.
if placed == 0 and not record.s and not record.b then
  redis.call('DEL', KEYS[2])
  if phone[ARGV[2]] == ARGV[3] then
    redis.call('HDEL', KEYS[1], ARGV[2])
  end
end
