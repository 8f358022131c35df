-- Record a change by an admin key; beyond about `most` the oldest are dropped.
--
-- KEYS    1 stream
-- ARGV    1 name of the key   2 action   3 most   4 how long they are kept
-- RETURN  nothing
local audit = KEYS[1]
local admin, action, most, kept = unpack(ARGV)

redis.call('XADD', audit, 'MAXLEN', '~', most, '*', 'admin', admin, 'action', action)
redis.call('PEXPIRE', audit, kept)
