-- Read a verification, and choose the one reader in an interval that looks its latest call up at the provider.
--
-- KEYS    1 record
-- ARGV    1 client   2 look-up interval ms
-- RETURN  {'found', now, expires, record, 1 if this reader is to look the call up, else 0}
--         {'not_found'}

local key = KEYS[1]
local now = now_ms()
local record = load(key)
if record.c ~= ARGV[1] then
  return {'not_found'}
end

local latest = record.n
local in_progress = record['f' .. latest] and not FINAL[record['t' .. latest]]
local lookup_due = in_progress and (record.o or 0) + ARGV[2] <= now
if lookup_due then
  redis.call('HSET', key, 'o', int(now))
end
return {'found', int(now), redis.call('PEXPIRETIME', key), redis.call('HGETALL', key), lookup_due and 1 or 0}
