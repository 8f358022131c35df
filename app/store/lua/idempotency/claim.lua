-- Claim a request for its Idempotency-Key, or return what an earlier claim came to.
--
-- pv:{i:<digest>}          hash: one request, by client, route and key.
--     fingerprint of its body   token of its claim, while it is in progress
--     status   headers (JSON)   body of its answer, once there is one
-- pv:begun:{i:<digest>}    hash: what the holder of a claim has begun, for the next holder if that process dies.
--     fingerprint of its body   note
--
-- KEYS    1 request   2 what was begun
-- ARGV    1 fingerprint   2 token   3 lifetime of the claim
-- RETURN  {'claimed', note, or '', now}      a note: the process that held the claim before has died
--         {'in_progress'}                    claimed by another request
--         {'reused'}                         for another body
--         {'done', status, headers, body}    the answer
local request_key, begun_key = unpack(KEYS)
local fingerprint, token, lifetime = unpack(ARGV)

local request, begun = load(request_key), load(begun_key)
if (request.fingerprint or begun.fingerprint or fingerprint) ~= fingerprint then
  return {'reused'}
elseif request.status then
  return {'done', request.status, request.headers, request.body}
elseif request.fingerprint then
  return {'in_progress'}
end
redis.call('HSET', request_key, 'fingerprint', fingerprint, 'token', token)
redis.call('PEXPIRE', request_key, lifetime)
return {'claimed', begun.note or '', now_ms()}
