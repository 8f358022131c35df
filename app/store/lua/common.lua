-- What every script shares: the clock, the names of keys, and the fields of a record. Put in front of each script.
--
-- pv:{bucket}:<rest of the id>    hash: one verification. Field names are one letter because 500 bytes is all one may cost.
--     c client   u purpose   p phone   h channel   l code length   s status (absent: pending)
--     n serial of the last call   k calls placed   m calls left   g checks allowed   b wrong checks (absent: none)
--     a created   e expires   r resend possible   o last look-up    (times: ms of the server's clock)
--   and for each call, followed by its serial:
--     d code digest   x code expires   t state   f provider's reference   w provider's unknown word
-- pv:{bucket}:p:<phone digest>    hash: one phone, over all its verifications.
--     n calls in the present streak   r next call possible   <client>:<purpose> → rest of the id of the latest verification

-- The states in which a call stays.
local FINAL = {completed = true, busy = true, no_answer = true, failed = true}

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A number as Redis is to store it: Lua would write 1.7e+12.
local function int(number)
  return string.format('%.0f', number)
end

local function load(key)
  local flat, fields = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  return fields
end

-- The record's key from any other key of the bucket, in whose slot it therefore lies.
local function record_key(sibling, rest_of_id)
  return sibling:match('^pv:{%x+}:') .. rest_of_id
end

local function rest_of_id(key)
  return key:match('[^:]+$')
end

-- The digest as it is held. The service cannot bind it to the verification: asked by phone, or for a resend, it does
-- not know the id. SHA-1 is enough here, for what goes in is a 256-bit keyed digest that nobody can guess or choose.
local function held_digest(key, code_digest)
  return redis.sha1hex(key .. code_digest)
end

-- No code of the verification verifies any more.
local function drop_codes(key, record)
  for serial = 1, record.n do
    redis.call('HDEL', key, 'd' .. serial, 'x' .. serial)
  end
end
