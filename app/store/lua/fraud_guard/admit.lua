-- Judge the range and the client of a call, and count it if it is about to be placed and its range is not blocked.
--
-- pv:{guard}:n:<name>    hash: the calls to a range, or of a client, and what came of them, in buckets of time.
--     n serial of the last bucket; and for each bucket, followed by its serial:   x began   c calls   s successes
-- pv:{guard}:b:<name>    hash: a range that is or was blocked, a client that is or was reported.
--     a since   r until   k level   c calls   s successes
-- pv:{guard}:list        hash: the names of those, so that they can be listed.
--
-- KEYS    1 list   of the range: 2 buckets, 3 block   of the client: 4 buckets, 5 report
-- ARGV    1 name of the range   2 name of the client   3 window ms   4 length of a bucket ms   5 maturity ms
--         6 fewest calls to be judged by   7 lowest conversion   8 first block ms   9 longest block ms
--         10 for how many ms after a block its level is remembered   11 1 to count the call, 0 to look whether it would be
-- RETURN  {ms to wait, or 0,
--          {level, calls, successes} if this call had the range blocked, else {},
--          {level, calls, successes} if this call had the client reported, else {}}

local now = now_ms()
local window, bucket_length, maturity = ARGV[3], ARGV[4], ARGV[5]
local min_calls, min_conversion = tonumber(ARGV[6]), tonumber(ARGV[7])
local first_block, longest_block, memory = ARGV[8], tonumber(ARGV[9]), ARGV[10]

-- All successes of the window, and the calls that had time to succeed. Buckets that have left the window are dropped.
local function tally(key)
  local buckets, calls, successes = load(key), 0, 0
  for field, began in pairs(buckets) do
    local serial = field:match('^x(%d+)$')
    if serial and began + window <= now then
      redis.call('HDEL', key, field, 'c' .. serial, 's' .. serial)
    elseif serial then
      successes = successes + (buckets['s' .. serial] or 0)
      if began + bucket_length + maturity <= now then
        calls = calls + (buckets['c' .. serial] or 0)
      end
    end
  end
  return calls, successes
end

-- Returns for how long the name is on the list, if it is, and what it was judged by, if it was just now.
local function judge(name, key, entry_key)
  local entry = load(entry_key)
  local wait = (entry.r or 0) - now
  if wait > 0 then
    return wait, {}
  end
  local calls, successes = tally(key)
  if calls < min_calls or successes / calls >= min_conversion then
    return 0, {}
  end
  local level = (entry.k or 0) + 1
  local length = math.min(first_block * 2 ^ (level - 1), longest_block)
  redis.call('HSET', entry_key, 'a', int(now), 'r', int(now + length), 'k', level, 'c', calls, 's', successes)
  redis.call('HSET', KEYS[1], name, '')
  keep_until(entry_key, now + length + memory)
  keep_until(KEYS[1], now + length + memory)
  redis.call('DEL', key)
  return length, {level, calls, successes}
end

local function count(key)
  local serial = redis.call('HGET', key, 'n') or 0
  local began = redis.call('HGET', key, 'x' .. serial) or 0
  if began + bucket_length <= now then
    serial = serial + 1
    redis.call('HSET', key, 'n', serial, 'x' .. serial, int(now))
  end
  redis.call('HINCRBY', key, 'c' .. serial, 1)
  redis.call('PEXPIRE', key, window)
end

local wait, block = judge(ARGV[1], KEYS[2], KEYS[3])
local _, report = judge(ARGV[2], KEYS[4], KEYS[5])
if wait == 0 and ARGV[11] == '1' then
  count(KEYS[2])
  count(KEYS[4])
end
return {wait, block, report}
