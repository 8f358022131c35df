#!lua flags=allow-oom
-- Return how many blocks an index has that have not ended. add_to_index.lua describes the key.
--
-- KEYS    1 index
return redis.call('ZCOUNT', KEYS[1], '(' .. now_ms(), '+inf')
