#!lua flags=allow-oom
-- Erase the kept answer of a request, if it holds one of some texts. idempotency/claim.lua describes the key.
--
-- KEYS    1 request
-- ARGV    the texts
-- RETURN  1 if it was erased, else 0
local key, texts = KEYS[1], ARGV

local request = load(key)
for _, text in ipairs(texts) do
  if (request.body or ''):find(text, 1, true) or (request.headers or ''):find(text, 1, true) then
    return redis.call('DEL', key)
  end
end
return 0
