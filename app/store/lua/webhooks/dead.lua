#!lua flags=allow-oom
-- List dead letters, the oldest first.
--
-- KEYS    1 dead   2 letters
-- ARGV    1 ms that letters are kept
-- RETURN  {{event, when it was given up, its fields as a flat JSON array}…}

local found = {}
local dead = redis.call('ZRANGE', KEYS[1], int(now_ms() - ARGV[1]), '+inf', 'BYSCORE', 'WITHSCORES')
for i = 1, #dead, 2 do
  local letter = redis.call('HGET', KEYS[2], dead[i])
  if letter then
    found[#found + 1] = {dead[i], dead[i + 1], letter}
  end
end
return found
