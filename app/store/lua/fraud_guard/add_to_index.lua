-- Add a block to the index, and drop some of those that have ended. Repeated, it changes nothing.
--
-- {guard}:ranges     sorted set: the ranges that are blocked: range → until when
-- {guard}:clients    sorted set: the clients that are reported, likewise
--
-- KEYS    1 index
-- ARGV    1 name of the range or client   2 when its block ends
local index = KEYS[1]
local name, ends = unpack(ARGV)

for _, ended in ipairs(redis.call('ZRANGE', index, '-inf', now_ms(), 'BYSCORE', 'LIMIT', 0, 100)) do
  redis.call('ZREM', index, ended)
end
redis.call('ZADD', index, ends, name)
keep_until(index, ends)
