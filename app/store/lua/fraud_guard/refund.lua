#!lua flags=allow-oom
-- Give a call back that did not happen: in the last bucket that has one, and never below zero.
--
-- KEYS    1… buckets of the range and of the client
-- ARGV    none
-- RETURN  nothing

for _, key in ipairs(KEYS) do
  for serial = redis.call('HGET', key, 'n') or 0, 1, -1 do
    local calls = tonumber(redis.call('HGET', key, 'c' .. serial) or 0)
    if calls > 0 then
      redis.call('HSET', key, 'c' .. serial, calls - 1)
      break
    elseif redis.call('HEXISTS', key, 'x' .. serial) == 0 then
      break
    end
  end
end
