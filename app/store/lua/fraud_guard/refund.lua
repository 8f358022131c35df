#!lua flags=allow-oom
-- Refund a call that did not happen: in the last bucket that has one, and never below zero. admit.lua describes the keys.
--
-- KEYS    1… buckets of the range and of the client

for _, key in ipairs(KEYS) do
  local calls, earlier = unpack(redis.call('HMGET', key, 'calls', 'earlier'))
  local before, count, after = (earlier or ''):match('^(.*:)([1-9]%d*)(:.*)$') -- the last one with calls
  if tonumber(calls or 0) > 0 then
    redis.call('HINCRBY', key, 'calls', -1)
  elseif count then
    redis.call('HSET', key, 'earlier', before .. count - 1 .. after, 'tally_until', 0)
  end
end
