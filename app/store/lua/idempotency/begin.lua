-- Note what the holder of a claim is about to do, and extend the claim. The note outlives the claim. claim.lua describes
-- the keys.
--
-- Where this runs late, because Redis stood still, its caller has given up and does nothing: then nothing is noted, so
-- that the claim ends after its few seconds.
--
-- KEYS    1 request   2 what was begun
-- ARGV    1 fingerprint   2 token   3 note   4 lifetime of the claim   5 lifetime of the note
--         6 last moment at which it is noted
-- RETURN  1 if it is noted; 0 if it is late, or another request holds the claim. A claim that only expired is renewed.
local request_key, begun_key = unpack(KEYS)
local fingerprint, token, note, claim_for, keep_for, latest = unpack(ARGV)

local request = load(request_key)
local is_taken_over = request.fingerprint and request.token ~= token
  or not request.fingerprint and redis.call('EXISTS', begun_key) == 1
if is_taken_over or now_ms() > tonumber(latest) then return 0 end
redis.call('HSET', request_key, 'fingerprint', fingerprint, 'token', token)
redis.call('PEXPIRE', request_key, claim_for)
redis.call('HSET', begun_key, 'fingerprint', fingerprint, 'note', note)
redis.call('PEXPIRE', begun_key, keep_for)
return 1
