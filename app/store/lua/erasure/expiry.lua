#!lua flags=allow-oom
-- Forget which verifications of a phone were to be told of when they expire; a step of a walk through all.
-- webhooks/take.lua says what is where.
--
-- KEYS    1 expiry
-- ARGV    1 phone   2 cursor, '0' at first   3 about how many to look at
-- RETURN  {cursor of the next step, or '0' if this was the last, how many were forgotten}

local found = redis.call('ZSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local forgotten = 0
for i = 1, #found[2], 2 do
  if found[2][i]:match('|([^|]*)$') == ARGV[1] then
    forgotten = forgotten + redis.call('ZREM', KEYS[1], found[2][i])
  end
end
return {found[1], forgotten}
