-- Note what the holder of a claim is about to do; claim.lua lists the fields. It outlives the claim.
--
-- KEYS    1 request   2 what was begun
-- ARGV    1 token   2 note   3 ms to keep it
-- RETURN  1 if it is noted, 0 if the claim is not one's own any more

local request = load(KEYS[1])
if request.token ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[2], 'fingerprint', request.fingerprint, 'note', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
