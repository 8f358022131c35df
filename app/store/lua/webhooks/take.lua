#!lua flags=allow-oom
-- Take the events of a bucket that are due: those taken before and due again, then new ones. They are in the slot of the
-- verifications of the bucket, so that a change and its event are one step.
--
-- {bucket}:o    sorted set, the outbox: event that no worker has taken → when it is due: one that has happened at once,
--                  an expiry when its verification has expired
-- {bucket}:r    sorted set, retries: event that a worker has taken → when it is taken again: after the pause before the
--                  next attempt, or when the worker must have died
--
-- An event is one text: <rest of the id of its verification>-<its number there>|<type>|<client>|<purpose>|<channel>|
-- <phone>|<status>|<status of the latest call>|<moment>, and once an attempt has failed, |<attempts>|<error>. The moment
-- of an expiry is added as it is taken. After the purpose comes :<reference>, if there is one, with its % as %25 and its |
-- as %7C.
--
-- KEYS    1 outbox   2 retries
-- ARGV    1 how many at most   2 time after which an event is taken again   3 how many new ones are kept
-- RETURN  {when the next event is due or '', how many others wait to be delivered, how many were dropped, {event…}}
local outbox, retries = unpack(KEYS)
local most, claim_after, most_new = unpack(ARGV)
local MOST_DROPPED = 1000 -- at once

local now = now_ms()
local events = redis.call('ZRANGE', retries, '-inf', now, 'BYSCORE', 'LIMIT', 0, most)
local new = redis.call('ZCOUNT', outbox, '-inf', now)
local waiting = redis.call('ZCARD', retries) + new

local dropped = {}
if new > tonumber(most_new) then
  dropped = redis.call('ZRANGE', outbox, 0, math.min(new - most_new, MOST_DROPPED) - 1)
  redis.call('ZREM', outbox, unpack(dropped))
end
if new > 0 and #events < tonumber(most) then
  local found = redis.call('ZRANGE', outbox, '-inf', now, 'BYSCORE', 'LIMIT', 0, most - #events, 'WITHSCORES')
  for i = 1, #found, 2 do
    local event, due = found[i], found[i + 1]
    redis.call('ZREM', outbox, event)
    events[#events + 1] = event:sub(-1) == '|' and event .. due - AFTER_EXPIRY_MS or event
  end
end
for _, event in ipairs(events) do
  redis.call('ZADD', retries, now + claim_after, event)
end
redis.call('PEXPIRE', retries, EVENTS_KEPT_MS)

local next_due = math.huge
for _, key in ipairs(KEYS) do
  next_due = math.min(next_due, redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or next_due)
end
return {next_due < math.huge and tostring(next_due) or '', waiting - #dropped - #events, #dropped, events}
