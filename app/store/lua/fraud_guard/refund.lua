#!lua flags=allow-oom
-- Refund a call that did not happen: in the last bucket that has one, and never below zero. admit.lua describes the keys.
--
-- KEYS    1… buckets of the range and of the client

for _, key in ipairs(KEYS) do
  for number = redis.call('HGET', key, 'last') or 0, 1, -1 do
    local calls = tonumber(redis.call('HGET', key, 'calls' .. number) or 0)
    if calls > 0 then
      redis.call('HSET', key, 'calls' .. number, calls - 1)
      break
    elseif redis.call('HEXISTS', key, 'began' .. number) == 0 then
      break
    end
  end
end
