-- What every script shares: the clock, the names of keys, and the fields of a record. Put in front of each script.
--
-- pv:{bucket}:<rest of the id>    hash: one verification. Field names are one letter because 500 bytes is all one may cost.
--     c client   u purpose   p phone   q phone digest   h channel   l code length (0: no code)   s status (absent: pending)
--     n serial of the last call   m calls left   g checks allowed   b wrong checks (absent: none)   z test (absent: no)
--     a created   r resend possible    (times: ms of the server's clock; it expires with its key)
--     v version, which grows with each change   e its creation was told to the client's webhook
--   and for each call, followed by its serial:
--     d code digest   l code length   x expires   t state   f provider's reference   w provider's unknown word   h channel
--     i number to dial   k the person dialled it   y token of the limits that it was counted against, if it may come back
--     o h, l and g as they were before it, if it was a resend
-- pv:{bucket}:p:<phone digest>    hash: one phone, over all its verifications.
--     n calls in the present streak   r next call possible   <client>:<purpose> → rest of the id of the latest verification
--     d rest of the id of its latest reverse call, whoever's
--     l calls   b failed checks    (logs: moments, oldest first, between commas)   o operator, as the provider said
-- pv:{l:<digest>}                 sorted set: one limit over an address, a range, a client, everybody: token → moment
-- pv:{bucket}:t:<rest of the id>  string: its token was redeemed
-- pv:{events}                     stream: what clients are told by webhook; app/store/events.py reads it
-- pv:{events}:expiry              sorted set: the pending verifications of such clients → when they expire

-- How far a call has come: it never goes back, and from the last stage nowhere.
local STAGE = {initiated = 1, unconfirmed = 1, ringing = 2, answered = 3, completed = 4, busy = 4, no_answer = 4, failed = 4}
local LAST_STAGE = 4

-- About so many events, beyond which the oldest are dropped; and since the last one, longer than any waits for a try.
local EVENTS_KEPT, EVENTS_KEPT_MS = 100000, 3 * 24 * 3600 * 1000

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

-- The moments of a log that are younger than `period`.
local function recent(log, now, period)
  local moments = {}
  for moment in (log or ''):gmatch('%d+') do
    if moment + period > now then
      moments[#moments + 1] = tonumber(moment)
    end
  end
  return moments
end

-- How many events in the last `period` there are in a log of moments, and how long until there is room for another.
local function used(moments, now, count, period)
  local inside = 0
  while inside < #moments and moments[#moments - inside] + period > now do
    inside = inside + 1
  end
  return inside, inside >= count and moments[#moments - count + 1] + period - now or 0
end

local function write_log(moments)
  for i, moment in ipairs(moments) do
    moments[i] = int(moment)
  end
  return table.concat(moments, ',')
end

-- The same of a sorted set.
local function used_of_set(key, now, count, period)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - period)
  local inside = redis.call('ZCARD', key)
  if inside < count then
    return inside, 0
  end
  local oldest = redis.call('ZRANGE', key, inside - count, inside - count, 'WITHSCORES')
  return inside, oldest[2] + period - now
end

local function count_in_set(key, now, token, period)
  redis.call('ZADD', key, int(now), token)
  redis.call('PEXPIRE', key, period)
end

-- A key lives on until `moment` at least.
local function keep_until(key, moment)
  redis.call('PEXPIREAT', key, int(math.max(moment, redis.call('PEXPIRETIME', key))))
end

-- Let a call be made by a channel: with its code, whose digest this is, or without one ('').
local function give_code(key, serial, channel, length, code_digest)
  redis.call('HSET', key, 'h', channel, 'h' .. serial, channel, 'l', length, 'l' .. serial, length)
  if code_digest ~= '' then
    redis.call('HSET', key, 'd' .. serial, held_digest(key, code_digest))
  else
    redis.call('HDEL', key, 'd' .. serial)
  end
end

-- Nothing of the verification verifies any more.
local function drop_codes(key, record)
  for serial = 1, record.n do
    redis.call('HDEL', key, 'd' .. serial, 'k' .. serial)
  end
end

local function verification_id(key)
  return 'vrf_' .. key:match('{(%x+)}') .. rest_of_id(key)
end

local function in_expiry(key, record)
  return table.concat({record.c, verification_id(key), record.u, record.h, record.p}, '|')
end

-- Tell of a change: those who listen now, and, where `events` is the stream, the client's webhook of `event`.
local function tell(key, event, events)
  redis.call('HINCRBY', key, 'v', 1)
  redis.call('PUBLISH', 'pv:changes', verification_id(key))
  if not events then
    return
  end
  local record, expiry = load(key), events .. ':expiry'
  if event then
    local last = tonumber(record.n)
    while last > 0 and not record['t' .. last] do
      last = last - 1 -- it was taken back
    end
    redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', event, 'client', record.c, 'id', verification_id(key),
      'purpose', record.u, 'channel', record.h, 'phone', record.p, 'status', record.s or 'pending',
      'call', record['t' .. last] or '', 'at', int(now_ms()))
    redis.call('PEXPIRE', events, EVENTS_KEPT_MS)
  end
  if record.s or not record.e then
    redis.call('ZREM', expiry, in_expiry(key, record))
  else
    redis.call('ZADD', expiry, redis.call('PEXPIRETIME', key), in_expiry(key, record))
    redis.call('PEXPIRE', expiry, EVENTS_KEPT_MS)
  end
end
