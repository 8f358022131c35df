#!lua flags=allow-oom
-- Forget the kept answer of a request, if it holds one of some texts. idempotency/claim.lua lists the fields.
--
-- KEYS    1 request
-- ARGV    the texts
-- RETURN  1 if it was forgotten, else 0

local request = load(KEYS[1])
for _, text in ipairs(ARGV) do
  if (request.body or ''):find(text, 1, true) or (request.headers or ''):find(text, 1, true) then
    return redis.call('DEL', KEYS[1])
  end
end
return 0
