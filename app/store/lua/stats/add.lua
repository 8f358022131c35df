-- Add the counts of one process to those of this hour and this day, by the server's clock. Repeated, it adds nothing.
--
-- {stats}:h:<hours since 1970>   hash: the counts of an hour
-- {stats}:d:<days since 1970>    hash: the counts of a day in the time zone of the settings
--   <client>|<channel>|<operator>     counts of the calls of a segment, in the order of CALL_COUNTS in app/store/stats.py
--   <name>                            another count
-- {stats}:w:<process>            string: number of the last batch of a process
--
-- KEYS    1 number of the last batch
-- ARGV    1 number of this batch   2 for how long it is remembered   3 for how long an hour is kept   4 and a day
--         5 ms by which the time zone is ahead of UTC   6 the counts, as a JSON object of arrays
local last_batch = KEYS[1]
local batch, remembered, keep_hour, keep_day, ahead, counts = unpack(ARGV)

if tonumber(batch) <= tonumber(redis.call('GET', last_batch) or 0) then return end
counts = cjson.decode(counts)

-- What one key holds at most. Beyond the first, calls count for the operator 'other', so that each client's stay its own
-- for longer; beyond the second, for the client 'other'.
local MOST_WITH_OPERATOR, MOST_WITH_CLIENT = 200, 400

local OTHER = 'other'
local now = now_ms()
local hour = key_beside(last_batch, 'h:' .. math.floor(now / 3600000))
local day = key_beside(last_batch, 'd:' .. math.floor((now + ahead) / 86400000))

-- Return a list of counts, as it is stored, with others added. Lua writes whole numbers below 10^14 as they are.
local function sum(stored, others)
  local sums = {}
  for count in (stored or ''):gmatch('[^,]+') do
    sums[#sums + 1] = count
  end
  for i, count in ipairs(others) do
    sums[i] = (sums[i] or 0) + count
  end
  return table.concat(sums, ',')
end

-- Return the fields of a key that change.
local function changes_of(key)
  local stored, size, changes = load(key), 0, {}
  for _ in pairs(stored) do
    size = size + 1
  end
  for name, others in pairs(counts) do
    local client, channel = name:match('^(.-)|(.-)|')
    if client and not stored[name] and size >= MOST_WITH_OPERATOR then
      name = table.concat({client, channel, OTHER}, '|')
      if not stored[name] and size >= MOST_WITH_CLIENT then
        name = table.concat({OTHER, channel, OTHER}, '|')
      end
    end
    size = size + (stored[name] and 0 or 1)
    stored[name] = sum(stored[name], others)
    changes[name] = stored[name]
  end
  return changes
end

local of_hour, of_day = changes_of(hour), changes_of(day)
write(hour, of_hour)
redis.call('PEXPIRE', hour, keep_hour)
write(day, of_day)
redis.call('PEXPIRE', day, keep_day)
redis.call('SET', last_batch, batch, 'PX', remembered)
