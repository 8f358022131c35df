-- Claim a request for its Idempotency-Key, or tell what became of whoever did before.
--
-- pv:{i:<digest>}          hash: one request, by client, route and key.
--     fingerprint of its body   token of its claim, while it is under way
--     status   headers (JSON)   body of its answer, once that was given
-- pv:begun:{i:<digest>}    hash: what the holder of a claim has begun, for whoever claims the request if that one dies.
--     fingerprint of its body   note
--
-- KEYS    1 request   2 what was begun
-- ARGV    1 fingerprint   2 token   3 ms until the claim expires
-- RETURN  {'claimed', note, or '', now}      a note: whoever held the claim before has died over it
--         {'in_progress'}                    by somebody else
--         {'reused'}                         for another body
--         {'done', status, headers, body}    here is the answer

local request, begun = load(KEYS[1]), load(KEYS[2])

if (request.fingerprint or begun.fingerprint or ARGV[1]) ~= ARGV[1] then
  return {'reused'}
elseif not request.fingerprint then
  redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'token', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {'claimed', begun.note or '', now_ms()}
elseif not request.status then
  return {'in_progress'}
end
return {'done', request.status, request.headers, request.body}
