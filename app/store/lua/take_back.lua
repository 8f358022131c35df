-- Undo a call that definitely did not happen. Run twice it changes nothing more, for serials are never used again. A
-- cooldown that a later call began stays: it ends at another moment.
--
-- KEYS    1 phone   2 record
-- ARGV    1 serial   2 client:purpose   3 rest of the id   4 end of the cooldown that the call began
-- RETURN  nothing

local record = load(KEYS[2])
local serial = ARGV[1]

if not record['t' .. serial] then
  return
end
if redis.call('HGET', KEYS[1], 'r') == ARGV[4] then
  redis.call('HDEL', KEYS[1], 'r')
  if redis.call('HINCRBY', KEYS[1], 'n', -1) <= 0 then
    redis.call('HDEL', KEYS[1], 'n')
  end
end

redis.call('HDEL', KEYS[2], 'd' .. serial, 'x' .. serial, 't' .. serial, 'f' .. serial, 'w' .. serial, 'r')
redis.call('HSET', KEYS[2], 'k', record.k - 1, 'm', record.m + 1)

-- A verification without a call is forgotten, unless guesses were made on it: those stay counted, or a provider that
-- refuses every call would let somebody guess for ever at codes that were never spoken.
if record.k - 1 <= 0 and not record.s and not record.b then
  redis.call('DEL', KEYS[2])
  if redis.call('HGET', KEYS[1], ARGV[2]) == ARGV[3] then
    redis.call('HDEL', KEYS[1], ARGV[2])
  end
  return
end

-- The verification again ends with the last of its other codes.
local expires = 0
for other = 1, record.n do
  if tostring(other) ~= serial then
    expires = math.max(expires, record['x' .. other] or 0)
  end
end
if expires > 0 then
  redis.call('HSET', KEYS[2], 'e', int(expires))
  redis.call('PEXPIREAT', KEYS[2], int(expires))
end
