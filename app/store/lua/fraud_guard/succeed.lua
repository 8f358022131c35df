-- Count a verification that succeeded, in the bucket of the latest call: its own call is at most the life of a code
-- older. Without any call left there is nothing to judge. admit.lua describes the keys.
--
-- KEYS    1… buckets of the range and of the client

for _, key in ipairs(KEYS) do
  local number = redis.call('HGET', key, 'last')
  if number then
    redis.call('HINCRBY', key, 'successes' .. number, 1)
  end
end
