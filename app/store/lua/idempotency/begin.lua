-- Note what the holder of a claim is about to do, and extend the claim. The note outlives the claim. claim.lua describes
-- the key.
--
-- Where this runs late, because Redis stood still, its caller has given up and does nothing: then nothing is noted, so
-- that the claim ends after its few seconds. A holder that has begun something may begin another thing at any time.
--
-- KEYS    1 request
-- ARGV    1 fingerprint   2 token   3 what is begun   4 lifetime of the claim   5 lifetime of the note
--         6 last moment at which the first is noted
-- RETURN  1 if it is noted; 0 if it is late, or another request holds the claim. A claim that only expired is renewed.
local key = KEYS[1]
local fingerprint, token, begun, claim_for, keep_for, latest = unpack(ARGV)

local now, request = now_ms(), load(key)
if request.fingerprint and request.token ~= token then return 0 end
local is_over = tonumber(request.claimed_until or 0) <= now
if request.begun and is_over or not request.begun and now > tonumber(latest) then return 0 end
redis.call('HSET', key, 'fingerprint', fingerprint, 'token', token, 'claimed_until', now + claim_for, 'begun', begun)
redis.call('PEXPIRE', key, keep_for)
return 1
