-- Store a balance that was just read. read.lua describes the key.
--
-- KEYS    1 balance
-- ARGV    1 balance in RUB   2 for how long it is kept
-- RETURN  the balance before, or '' if it was unknown
local key = KEYS[1]
local value, memory = unpack(ARGV)

local before = redis.call('HGET', key, 'value')
redis.call('HSET', key, 'value', value, 'read_at', now_ms())
redis.call('HDEL', key, 'leased_until')
redis.call('PEXPIRE', key, memory)
return before or ''
