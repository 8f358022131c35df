#!lua flags=allow-oom
-- Give a worker events to deliver: those that nobody has settled in time, then those that nobody has seen. Before that,
-- what is due is moved into the stream: verifications that expired, and deliveries that are to be tried again.
--
-- pv:{events}            stream: events to be delivered; an entry goes once it is delivered or set aside.
--     type  client  id  purpose  channel  phone  status  call  at (ms)
--   and once a delivery was set aside:   event: the first entry's id   attempts that failed   error of the last one
-- pv:{events}:expiry     sorted set: <client>|<verification id>|<purpose>|<channel>|<phone> → when it expires
-- pv:{events}:retry      sorted set: event → when it is tried again
-- pv:{events}:dead       sorted set: event → when it was given up
-- pv:{events}:letters    hash: event → its fields, as a flat JSON array, for those of the two sets before
--
-- KEYS    1 stream   2 expiry   3 retry   4 letters
-- ARGV    1 group   2 how many at most   3 ms after which an entry that was not settled is given to another worker
-- RETURN  {{taken over: {entry id, {field, value…}}…}, {new: the same…}, how many were trimmed before they were settled}

local now = now_ms()
local most = tonumber(ARGV[2])

local function due(key, bound)
  return redis.call('ZRANGE', key, '-inf', bound .. int(now), 'BYSCORE', 'LIMIT', 0, most, 'WITHSCORES')
end

-- In the name of the group; creates it where it is missing, which after a flush it is.
local function in_group(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and reply.err:find('NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0')
    return redis.call(...)
  end
  return reply
end

-- Up to and without this moment: in the millisecond of its expiry a record is still there, and can be verified.
local expired = due(KEYS[2], '(')
for i = 1, #expired, 2 do
  redis.call('ZREM', KEYS[2], expired[i])
  local client, id, purpose, channel, phone = expired[i]:match('^([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$')
  if client then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', 'verification.expired', 'client', client,
      'id', id, 'purpose', purpose, 'channel', channel, 'phone', phone, 'status', 'expired', 'call', '',
      'at', int(tonumber(expired[i + 1])))
  end
end

local again = due(KEYS[3], '')
for i = 1, #again, 2 do
  local letter = redis.call('HGET', KEYS[4], again[i])
  redis.call('ZREM', KEYS[3], again[i])
  redis.call('HDEL', KEYS[4], again[i])
  if letter then
    redis.call('XADD', KEYS[1], '*', unpack(cjson.decode(letter)))
  end
end

if #expired + #again > 0 then
  redis.call('PEXPIRE', KEYS[1], EVENTS_KEPT_MS)
elseif redis.call('EXISTS', KEYS[1]) == 0 then
  return {{}, {}, 0}
end

-- All workers read under one name: an entry is given out once whatever the name, and no name is left behind.
local claimed = in_group('XAUTOCLAIM', KEYS[1], ARGV[1], 'worker', ARGV[3], '0-0', 'COUNT', most)
local fresh = {}
if #claimed[2] < most then
  local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], 'worker', 'COUNT', most - #claimed[2], 'STREAMS', KEYS[1], '>')
  fresh = read and read[1][2] or {}
end
return {claimed[2], fresh, #claimed[3]}
