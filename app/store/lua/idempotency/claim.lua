-- Claim a request for its Idempotency-Key, or return what an earlier claim came to.
--
-- {i:<digest>}    hash: one request, by client, route and key
--     fingerprint of its body
--     token   claimed_until: the claim of the process that works on it
--     begun: what the holder of a claim has begun, for the next holder if that process dies
--     status   headers (JSON)   body of its answer, once there is one
--
-- KEYS    1 request
-- ARGV    1 fingerprint   2 token   3 lifetime of the claim
-- RETURN  {'claimed', what was begun, or '', now}    begun: the process that held the claim before has died
--         {'in_progress'}                            claimed by another request
--         {'reused'}                                 for another body
--         {'done', status, headers, body}            the answer
local key = KEYS[1]
local fingerprint, token, lifetime = unpack(ARGV)

local now, request = now_ms(), load(key)
if (request.fingerprint or fingerprint) ~= fingerprint then
  return {'reused'}
elseif request.status then
  return {'done', request.status, request.headers, request.body}
elseif tonumber(request.claimed_until or 0) > now then
  return {'in_progress'}
end
redis.call('HSET', key, 'fingerprint', fingerprint, 'token', token, 'claimed_until', now + lifetime)
keep_until(key, now + lifetime, not request.fingerprint)
return {'claimed', request.begun or '', now}
