-- Count starts that were refused before a provider was asked: those of a bucket and a day. Beyond `most` kinds, further
-- ones are dropped.
--
-- KEYS    1 hash
-- ARGV    1 when it expires   2 most kinds   3… hour, phone digest and reason of a kind, as one text, and its count
-- RETURN  nothing
local refused = KEYS[1]
local expires, most, counts = ARGV[1], ARGV[2] + 0, {select(3, unpack(ARGV))}

local known, changes, kinds = load(refused), {}, 0
for _ in pairs(known) do
  kinds = kinds + 1
end
for i = 1, #counts, 2 do
  local kind, count = counts[i], counts[i + 1]
  if known[kind] or kinds < most then
    kinds = kinds + (known[kind] and 0 or 1)
    changes[kind] = (known[kind] or 0) + count
  end
end
write(refused, changes)
redis.call('PEXPIREAT', refused, expires)
