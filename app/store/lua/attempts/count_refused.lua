-- Count starts that limits refused: those of a bucket and a day. Beyond `most` kinds, further ones are dropped.
--
-- KEYS    1 hash
-- ARGV    1 when it expires   2 most kinds   3… hour, phone digest and limit of a kind, as one text, and its count
-- RETURN  nothing
local refused = KEYS[1]
local expires, most, counts = ARGV[1], ARGV[2] + 0, {select(3, unpack(ARGV))}

local kinds = redis.call('HLEN', refused)
for i = 1, #counts, 2 do
  local kind, count = counts[i], counts[i + 1]
  local is_new = redis.call('HEXISTS', refused, kind) == 0
  if not is_new or kinds < most then
    redis.call('HINCRBY', refused, kind, count)
    kinds = kinds + (is_new and 1 or 0)
  end
end
if kinds > 0 then
  redis.call('PEXPIREAT', refused, expires)
end
