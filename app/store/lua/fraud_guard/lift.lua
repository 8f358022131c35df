#!lua flags=allow-oom
-- End a block, and forget its level: whoever lifts it says that it was wrong.
--
-- KEYS    1 list   2 block
-- ARGV    1 name of the range
-- RETURN  1, or 0 where there is no block

if tonumber(redis.call('HGET', KEYS[2], 'r') or 0) <= now_ms() then
  return 0
end
redis.call('DEL', KEYS[2])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
