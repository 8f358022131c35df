-- What every script shares: the clock, the names of keys, and the fields of a record. Put in front of each script.
--
-- pv:{bucket}:<rest of the id>    hash: one verification. Field names are one letter because 500 bytes is all one may cost.
--     c client   u purpose   p phone   q phone digest   h channel   l code length (0: no code)   s status (absent: pending)
--     n serial of the last call   m calls left   g checks allowed   b wrong checks (absent: none)   z test (absent: no)
--     a created   r resend possible    (times: ms of the server's clock; it expires with its key)
--     v version, which grows with each change   e its creation was told to the client's webhook
--     j retry digest of the check that verified it: the same request, repeated, gets the proof again
--   and for each call, followed by its number:
--     d code digest   l code length   x expires   t state   f provider's reference   w provider's unknown word   h channel
--     i number to dial   k the person dialled it   y token of the limits that it was counted against, if it may be refunded
--     o until it is recorded as placed: '<r of the phone> <its n and r before, or 0> <checks allowed> <token>'
-- pv:{bucket}:p:<phone digest>    hash: one phone, over all its verifications.
--     n calls in the present streak   r next call possible   o operator, as the provider said
--     <client>:<purpose>   rests of the ids of its verifications, oldest first, between commas
--     d rest of the id of its latest reverse call, for any client   w '<rest>:<number>' of a call that the provider is asked for
--     l calls   b failed checks    (logs: moments, oldest first, between commas; of a failed check '<moment>@<address digest>')
-- pv:{l:<digest>}                 sorted set: one limit over an address, a range, a client, everybody: token → moment
-- pv:{bucket}:t:<rest of the id>  string: its token was redeemed
-- pv:{events}                     stream: what clients are told by webhook; app/store/webhooks.py reads it
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

-- The digest as it is held. The service cannot bind it to the verification: asked by phone, it does
-- not know the id. SHA-1 is enough here, for what goes in is a 256-bit keyed digest that nobody can guess or choose.
local function held_digest(key, code_digest)
  return redis.sha1hex(key .. code_digest)
end

-- The entries of a log that are younger than `period`, oldest first: {at = moment, address = its digest, or ''}.
local function recent(log, now, period)
  local entries = {}
  for moment, address in (log or ''):gmatch('(%d+)@?(%x*)') do
    if moment + period > now then
      entries[#entries + 1] = {at = tonumber(moment), address = address}
    end
  end
  return entries
end

local function of_address(entries, address)
  local own = {}
  for _, entry in ipairs(entries) do
    if entry.address == address then
      own[#own + 1] = entry
    end
  end
  return own
end

-- How many entries there are in the last `period`, and how long until there is room for another among `count`.
local function used(entries, now, count, period)
  local inside = 0
  while inside < #entries and entries[#entries - inside].at + period > now do
    inside = inside + 1
  end
  return inside, inside >= count and entries[#entries - count + 1].at + period - now or 0
end

local function write_log(entries)
  local texts = {}
  for i, entry in ipairs(entries) do
    texts[i] = int(entry.at) .. (entry.address ~= '' and '@' .. entry.address or '')
  end
  return table.concat(texts, ',')
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

-- How long until the phone of a record may be called again.
local function until_next_call(key, record, now)
  return math.max(0, (redis.call('HGET', record_key(key, 'p:' .. record.q), 'r') or 0) - now)
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

-- Have the client's webhook told when a verification expires, or no longer, once it is final.
local function schedule_expiry(key, record, events)
  local expiry = events .. ':expiry'
  if record.s or not record.e then
    redis.call('ZREM', expiry, in_expiry(key, record))
  else
    redis.call('ZADD', expiry, redis.call('PEXPIRETIME', key), in_expiry(key, record))
    redis.call('PEXPIRE', expiry, EVENTS_KEPT_MS)
  end
end

local function add_event(key, record, event, status, events)
  local last = tonumber(record.n)
  while last > 0 and not record['t' .. last] do
    last = last - 1 -- it was refunded
  end
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', event, 'client', record.c, 'id', verification_id(key),
    'purpose', record.u, 'channel', record.h, 'phone', record.p, 'status', status,
    'call', record['t' .. last] or '', 'at', int(now_ms()))
  redis.call('PEXPIRE', events, EVENTS_KEPT_MS)
end

-- Tell of a change: those who listen now, and, where `events` is the stream, the client's webhook of `event`.
local function tell(key, event, events)
  redis.call('HINCRBY', key, 'v', 1)
  redis.call('PUBLISH', 'pv:changes', verification_id(key))
  if not events then
    return
  end
  local record = load(key)
  if event and not record.e then
    -- Whatever is told of a verification, its creation is told first: the call may not have been recorded, or not yet.
    record.e = 1
    redis.call('HSET', key, 'e', 1)
    if event ~= 'verification.created' then
      add_event(key, record, 'verification.created', 'pending', events)
    end
  end
  if event then
    add_event(key, record, event, record.s or 'pending', events)
  end
  schedule_expiry(key, record, events)
end
