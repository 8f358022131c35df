#!lua flags=allow-oom
-- Return how often the starts of a phone were refused on a day; with '1' delete that.
--
-- KEYS    1 hash of count_refused.lua
-- ARGV    1 phone digest   2 '1' to delete
-- RETURN  {hour, phone digest and reason, as one text, count, …}
local refused = KEYS[1]
local phone_digest, delete = unpack(ARGV)

local found = {}
for kind, count in pairs(load(refused)) do
  if kind:find(phone_digest, 1, true) then
    found[#found + 1] = kind
    found[#found + 1] = count
    if delete == '1' then
      redis.call('HDEL', refused, kind)
    end
  end
end
return found
