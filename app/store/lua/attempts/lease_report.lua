-- Lease the report of finished attempts: the attempts of a time, none of which anything happens to any more.
--
-- KEYS    1 state
-- ARGV    1 after how long an attempt is finished   2 shortest and 3 longest time of a report   4 lease   5 token
--         6 how long the state is kept
-- RETURN  {begin, end}, or {} if there is nothing to report yet, or another worker does it
local state = KEYS[1]
local finished_after, shortest, longest, lease, token, kept = unpack(ARGV)

local now = now_ms()
local known = load(state)
local finish = now - finished_after
if not known.reported_to then
  redis.call('HSET', state, 'reported_to', finish)
  redis.call('PEXPIRE', state, kept)
  return {}
end
local begin = tonumber(known.reported_to)
if finish - begin < shortest + 0 or tonumber(known.leased_to or 0) > now then return {} end
redis.call('HSET', state, 'leased_to', now + lease, 'token', token)
return {begin, math.min(finish, begin + longest)}
