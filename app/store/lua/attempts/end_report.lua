-- Record that finished attempts are reported, unless another worker has leased that meanwhile.
--
-- KEYS    1 state of lease_report.lua
-- ARGV    1 token of the lease   2 end of the report   3 how long the state is kept
-- RETURN  nothing
local state = KEYS[1]
local token, finish, kept = unpack(ARGV)

if redis.call('HGET', state, 'token') == token then
  redis.call('HSET', state, 'reported_to', finish)
  redis.call('HDEL', state, 'token', 'leased_to')
  redis.call('PEXPIRE', state, kept)
end
