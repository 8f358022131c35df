-- Count verifications that succeeded, in the bucket of the latest call: their own calls are at most the life of a code
-- older. Without any call left there is nothing to judge. conversions.lua describes what is counted.
--
-- KEYS    1… limits on the calls of ranges and of clients, all in one slot
-- ARGV    1… how many succeeded, for each of the KEYS
local keys, succeeded = KEYS, ARGV

local limits = {}
for i, key in ipairs(keys) do
  limits[i] = read_limit(redis.call('GET', key))
end
for i, key in ipairs(keys) do
  if limits[i].calls ~= '' then
    count_successes(limits[i], succeeded[i])
    save_limit(key, limits[i])
  end
end
