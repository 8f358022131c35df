#!lua flags=allow-oom
-- Read the counters of a day.
--
-- KEYS    1 any key of the slot
-- ARGV    1 the day, in days since 1970; empty: today, by the server's clock
-- RETURN  {day, name, count …}

local day = ARGV[1] == '' and int(math.floor(now_ms() / 86400000)) or ARGV[1]
return {day, unpack(redis.call('HGETALL', 'pv:{stats}:' .. day))}
