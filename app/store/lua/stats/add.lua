-- Add the counts of one process to those of today, by the server's clock. Repeated, it adds nothing.
--
-- pv:{stats}:<days since 1970>   hash: the counts of a day (UTC): name → count
-- pv:{stats}:w:<process>         string: serial number of the last batch of a process
--
-- KEYS    1 serial number of the last batch
-- ARGV    1 serial number of this batch   2 for how long it is kept   3 for how long a day is kept
--         4 the counts, as a JSON object
-- RETURN  1 if it was added, 0 if it had been before
local key = KEYS[1]
local serial, keep_serial, keep_day, counts = unpack(ARGV)

if tonumber(serial) <= tonumber(redis.call('GET', key) or 0) then return 0 end
redis.call('SET', key, serial, 'PX', keep_serial)
local day = 'pv:{stats}:' .. math.floor(now_ms() / 86400000)
for name, count in pairs(cjson.decode(counts)) do
  redis.call('HINCRBY', day, name, count)
end
redis.call('PEXPIRE', day, keep_day)
return 1
