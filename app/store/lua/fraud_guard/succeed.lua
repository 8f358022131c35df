-- Count verifications that succeeded, in the bucket of the latest call: their own calls are at most the life of a code
-- older. Without any call left there is nothing to judge. admit.lua describes the keys.
--
-- KEYS    1… buckets of ranges and of clients
-- ARGV    1… how many succeeded, for each of the KEYS
local succeeded = ARGV

for i, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then
    redis.call('HINCRBY', key, 'successes', succeeded[i])
  end
end
