-- Return the last known balance, and whether the caller is the one to read it from the provider now.
--
-- {balance}    hash: value in RUB   read_at   leased_until: a worker is reading it
--
-- KEYS    1 balance
-- ARGV    1 age at which it is read again   2 lease of the reader   3 for how long all this is kept
-- RETURN  {balance, or '' if unknown; its age in ms; 1 for the one who is to read it, else 0}
local key = KEYS[1]
local interval, lease, memory = unpack(ARGV)

local now, known = now_ms(), load(key)
local age = now - (known.read_at or 0)
local is_reader = age >= tonumber(interval) and (known.leased_until or 0) - now <= 0
if is_reader then
  redis.call('HSET', key, 'leased_until', now + lease)
  keep_until(key, now + memory)
end
return {known.value or '', age, is_reader and 1 or 0}
