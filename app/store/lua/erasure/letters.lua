#!lua flags=allow-oom
-- Forget the events of a phone that wait to be tried again or were given up; a step of a walk through all.
-- webhooks/take.lua says what is where.
--
-- KEYS    1 letters   2 retry   3 dead
-- ARGV    1 phone   2 cursor, '0' at first   3 about how many to look at
-- RETURN  {cursor of the next step, or '0' if this was the last, how many were forgotten}

local found = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local forgotten = 0
for i = 1, #found[2], 2 do
  local event, fields = found[2][i], cjson.decode(found[2][i + 1])
  for field = 1, #fields, 2 do
    if fields[field] == 'phone' and fields[field + 1] == ARGV[1] then
      redis.call('ZREM', KEYS[2], event)
      redis.call('ZREM', KEYS[3], event)
      forgotten = forgotten + redis.call('HDEL', KEYS[1], event)
    end
  end
end
return {found[1], forgotten}
