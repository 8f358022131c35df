-- Note what the holder of a claim is about to do; claim.lua lists the fields. It outlives the claim.
--
-- KEYS    1 request   2 what was begun
-- ARGV    1 token   2 note   3 ms to keep it
-- RETURN  1 if it is noted, 0 if somebody else has taken the request over. A claim that only expired, and was not, is as
--         good as held: whoever comes next finds the note.

local request = load(KEYS[1])
local taken_over = request.fingerprint and request.token ~= ARGV[1]
if taken_over or not request.fingerprint and redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
if request.fingerprint then
  redis.call('HSET', KEYS[2], 'fingerprint', request.fingerprint)
end
redis.call('HSET', KEYS[2], 'note', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
