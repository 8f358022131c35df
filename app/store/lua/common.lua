-- What the scripts share; each gets what it uses of it.
--
-- Moments are ms of the server's clock, durations are ms. Names in capitals, such as CALL_STATUS, are those of fields in
-- app/store/layout.py; their letters are put in their place before Redis gets the script. Keys are described without what
-- all begin with.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Return the channel of changes, which begins as all keys do.
local function changes_channel(key)
  return key:match('^[^{]*') .. ':changes'
end

-- Return a key in the slot of another, which the script need not declare. It must touch it before its first write, and
-- waits while the slot moves: app/store/cluster_runner.py.
local function key_beside(key, rest)
  return key:match('^[^}]*}:') .. rest
end

local function load(key)
  local flat, fields = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  return fields
end

-- Make changes to a hash: field → value, or false to delete it.
local function write(key, changes)
  local set, deleted = {}, {}
  for field, value in pairs(changes) do
    if value then
      local last = #set
      set[last + 1], set[last + 2] = field, value
    else
      deleted[#deleted + 1] = field
    end
  end
  if #set > 0 then
    redis.call('HSET', key, unpack(set))
  end
  if #deleted > 0 then
    redis.call('HDEL', key, unpack(deleted))
  end
end

-- Let a key live until `moment` at least. For GT, a key without an expiry, as a new one, never expires.
local function keep_until(key, moment, is_new)
  if is_new or redis.call('PEXPIREAT', key, moment, 'GT') == 0 then
    redis.call('PEXPIREAT', key, moment, 'NX')
  end
end
