#!lua flags=allow-oom
-- Read the counts of a day.
--
-- KEYS    1 any key of the slot
-- ARGV    1 the day, in days since 1970, or '' for today by the server's clock
-- RETURN  {day, name, count …}
local any_key, day = KEYS[1], ARGV[1]

day = day ~= '' and day or math.floor(now_ms() / 86400000)
return {day, unpack(redis.call('HGETALL', key_beside(any_key, day)))}
