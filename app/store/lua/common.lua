-- What every script shares, put in front of each.
--
-- Moments are ms of the server's clock, durations are ms. Names in capitals, such as CALL_STATUS, are those of fields in
-- app/store/fields.py; their letters are put in their place before Redis gets the script.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Format a number for Redis: Lua would write 1.7e+12.
local function int(number)
  return string.format('%.0f', number)
end

local function load(key)
  local flat, fields = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  return fields
end

-- Let a key live until `moment` at least.
local function keep_until(key, moment)
  redis.call('PEXPIREAT', key, int(math.max(moment, redis.call('PEXPIRETIME', key))))
end
