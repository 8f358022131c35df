-- Add the counts of one process to those of today, by the server's clock. Repeated, it adds nothing.
--
-- {stats}:<days since 1970>   hash: the counts of a day (UTC): name → count
-- {stats}:w:<process>         string: number of the last batch of a process
--
-- KEYS    1 number of the last batch
-- ARGV    1 number of this batch   2 for how long it is remembered   3 for how long a day is kept
--         4 the counts, as a JSON object
local last_batch = KEYS[1]
local batch, remembered, keep_day, counts = unpack(ARGV)

if tonumber(batch) <= tonumber(redis.call('GET', last_batch) or 0) then return end
local day = key_beside(last_batch, math.floor(now_ms() / 86400000))
for name, count in pairs(cjson.decode(counts)) do
  redis.call('HINCRBY', day, name, count)
end
redis.call('PEXPIRE', day, keep_day)
redis.call('SET', last_batch, batch, 'PX', remembered)
