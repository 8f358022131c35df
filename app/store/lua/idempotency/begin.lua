-- Note what the holder of a claim is about to do, and extend the claim while it is done; claim.lua lists the fields. The
-- note outlives the claim.
--
-- Where this runs late, because Redis stood still, its caller has given up and does nothing: then nothing is noted, so
-- that the claim does not outlive its few seconds with nobody at work.
--
-- KEYS    1 request   2 what was begun
-- ARGV    1 fingerprint   2 token   3 note   4 ms until the claim expires   5 ms to keep the note   6 moment of its caller's
--         patience: the last at which it is noted
-- RETURN  1 if it is noted, 0 if it is late, or somebody else has taken the request over. A claim that only expired is as
--         good as held.

local fingerprint, token, note, claim_for, keep_for = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local latest = tonumber(ARGV[6])

local request = load(KEYS[1])
local is_taken_over = request.fingerprint and request.token ~= token
if now_ms() > latest or is_taken_over or not request.fingerprint and redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
redis.call('HSET', KEYS[1], 'fingerprint', fingerprint, 'token', token)
redis.call('PEXPIRE', KEYS[1], claim_for)
redis.call('HSET', KEYS[2], 'fingerprint', fingerprint, 'note', note)
redis.call('PEXPIRE', KEYS[2], keep_for)
return 1
