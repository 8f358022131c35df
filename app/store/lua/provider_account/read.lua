-- Return the last known balance, and whether whoever asks is the one to read it anew now.
--
-- pv:{balance}    hash: v balance in RUB   a when it was read   l until when somebody is reading it
--
-- KEYS    1 balance
-- ARGV    1 after how many ms it is read anew   2 lease of the reader in ms   3 for how many ms all this is kept
-- RETURN  {balance, or '' if unknown; its age in ms; 1 for the one who is to read it, else 0}

local now = now_ms()
local known = load(KEYS[1])
local age = now - (known.a or 0)
local is_reader = age >= tonumber(ARGV[1]) and (known.l or 0) - now <= 0
if is_reader then
  redis.call('HSET', KEYS[1], 'l', int(now + ARGV[2]))
  keep_until(KEYS[1], now + ARGV[3])
end
return {known.v or '', int(age), is_reader and 1 or 0}
