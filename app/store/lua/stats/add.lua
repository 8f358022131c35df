-- Add what one process has counted to the counters of today, by the server's clock; repeated, it adds nothing.
--
-- pv:{stats}:<days since 1970>   hash: what happened on a day (UTC): name → count
-- pv:{stats}:w:<process>         string: serial of the last batch of a process
--
-- KEYS    1 serial of the last batch
-- ARGV    1 serial of this batch   2 ms to remember it   3 ms to keep a day   then: name, count …
-- RETURN  1 if it was added, 0 if it had been

if tonumber(ARGV[1]) <= tonumber(redis.call('GET', KEYS[1]) or 0) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local day = 'pv:{stats}:' .. int(math.floor(now_ms() / 86400000))
for i = 4, #ARGV, 2 do
  redis.call('HINCRBY', day, ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', day, ARGV[3])
return 1
