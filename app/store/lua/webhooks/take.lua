#!lua flags=allow-oom
-- Take events to deliver: those that no worker has settled in time, then new ones. Before that, what is due is moved into
-- the stream: verifications that expired, and events to be tried again.
--
-- pv:{events}            stream: events to be delivered; an entry goes once it is delivered or set aside
--     type  client  id  purpose  channel  phone  status  call  at
--   and once it was set aside:   event: the first entry's id   attempts that failed   error of the last one
-- pv:{events}:expiry     sorted set: <client>|<verification id>|<purpose>|<channel>|<phone> → when it expires
-- pv:{events}:retry      sorted set: event → when it is tried again
-- pv:{events}:dead       sorted set: event → when it was given up
-- pv:{events}:bodies     hash: event of the two sets before → its fields, as a JSON object
--
-- KEYS    1 stream   2 expiry   3 retry   4 bodies
-- ARGV    1 group   2 how many at most   3 time after which an entry is given to another worker
-- RETURN  {{taken over: {entry id, {field, value…}}…}, {new: the same…}, how many were trimmed before they were settled}
local stream, expiry, retry, bodies = unpack(KEYS)
local group, most, claim_after = unpack(ARGV)

local now = now_ms()

-- Remove from a sorted set what is due by `bound`, and return it: member, score …
local function pop_due(key, bound)
  local due = redis.call('ZRANGE', key, '-inf', bound, 'BYSCORE', 'LIMIT', 0, most, 'WITHSCORES')
  for i = 1, #due, 2 do
    redis.call('ZREM', key, due[i])
  end
  return due
end

-- Run a command in the name of the group, and create it where it is missing, as after a flush.
local function in_group(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and reply.err:find('NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', stream, group, '0')
    return redis.call(...)
  end
  return reply
end

local expired = pop_due(expiry, '(' .. now) -- in the millisecond of its expiry a verification still verifies
for i = 1, #expired, 2 do
  local client, id, purpose, channel, phone = expired[i]:match('^([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$')
  if client then
    add_to_stream(stream, {type = 'verification.expired', client = client, id = id, purpose = purpose, channel = channel,
      phone = phone, status = 'expired', call = '', at = expired[i + 1]})
  end
end

local again = pop_due(retry, now)
for i = 1, #again, 2 do
  local letter = redis.call('HGET', bodies, again[i])
  redis.call('HDEL', bodies, again[i])
  if letter then add_to_stream(stream, cjson.decode(letter)) end
end

if redis.call('EXISTS', stream) == 0 then return {{}, {}, 0} end

-- All workers use one consumer name: an entry is given out once all the same, and no unused name remains.
local _, claimed, trimmed = unpack(in_group('XAUTOCLAIM', stream, group, 'worker', claim_after, '0-0', 'COUNT', most))
local fresh = {}
if #claimed < tonumber(most) then
  local read = redis.call('XREADGROUP', 'GROUP', group, 'worker', 'COUNT', most - #claimed, 'STREAMS', stream, '>')
  fresh = read and read[1][2] or {}
end
return {claimed, fresh, #trimmed}
