-- Count a verification that succeeded, beside the latest call: its own is at most the life of a code older. Where no
-- call is known any more, there is nothing left to judge.
--
-- KEYS    1… buckets of the range and of the client
-- ARGV    none
-- RETURN  nothing

for _, key in ipairs(KEYS) do
  local serial = redis.call('HGET', key, 'n')
  if serial then
    redis.call('HINCRBY', key, 's' .. serial, 1)
  end
end
