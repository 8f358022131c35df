-- Judge the range and the client of a call, and count the call if it is about to be placed and its range is not blocked.
--
-- pv:{guard}:n:<name>    hash: the calls to a range, or of a client, and their successes, in buckets of time
--     last: number of the last bucket; of each bucket, followed by its number: began   calls   successes
-- pv:{guard}:b:<name>    hash: a range that is or was blocked, a client that is or was reported
--     since   until   level   calls   successes
-- pv:{guard}:list        hash: the names of those, so that they can be listed
--
-- KEYS    1 list   of the range: 2 buckets, 3 block   of the client: 4 buckets, 5 report
-- ARGV    1 name of the range   2 name of the client   3 window   4 length of a bucket   5 maturity
--         6 fewest calls to be judged by   7 lowest conversion   8 first block   9 longest block
--         10 for how long after a block its level is remembered   11 '1' to count the call, '0' to ask only
-- RETURN  {ms to wait, or 0,
--          {level, calls, successes} if this has blocked the range, else {},
--          {level, calls, successes} if this has reported the client, else {}}
local list, range_buckets, range_block, client_buckets, client_report = unpack(KEYS)
local range, client, window, bucket_length, maturity, min_calls, min_conversion, first_block, longest_block, memory,
  counts = unpack(ARGV)
min_calls, min_conversion, longest_block = tonumber(min_calls), tonumber(min_conversion), tonumber(longest_block)

local now = now_ms()

-- Return all successes of the window, and the calls that had time to succeed. Drop buckets that have left the window.
local function tally(key, buckets)
  local calls, successes, gone = 0, 0, {}
  for field, began in pairs(buckets) do
    local number = field:match('^began(%d+)$')
    if number and began + window <= now then
      gone[field], gone['calls' .. number], gone['successes' .. number] = false, false, false
    elseif number then
      successes = successes + (buckets['successes' .. number] or 0)
      if began + bucket_length + maturity <= now then
        calls = calls + (buckets['calls' .. number] or 0)
      end
    end
  end
  write(key, buckets, gone)
  return calls, successes
end

-- Return for how long the name is blocked or reported, by which facts, if it is by this, and what is left of its buckets.
local function judge(name, key, entry_key)
  local entry, buckets = load(entry_key), load(key)
  local wait = (entry['until'] or 0) - now
  if wait > 0 then return wait, {}, buckets end
  local calls, successes = tally(key, buckets)
  if calls < min_calls or successes / calls >= min_conversion then return 0, {}, buckets end
  local level = (entry.level or 0) + 1
  local length = math.min(first_block * 2 ^ (level - 1), longest_block)
  redis.call('HSET', entry_key, 'since', now, 'until', now + length, 'level', level, 'calls', calls, 'successes', successes)
  redis.call('HSET', list, name, '')
  keep_until(entry_key, now + length + memory)
  keep_until(list, now + length + memory)
  redis.call('DEL', key)
  return length, {level, calls, successes}, {}
end

local function count(key, buckets)
  local number = buckets.last or 0
  local changes = {}
  if (buckets['began' .. number] or 0) + bucket_length <= now then
    number = number + 1
    changes.last, changes['began' .. number] = number, now
  end
  changes['calls' .. number] = (buckets['calls' .. number] or 0) + 1
  write(key, buckets, changes)
  redis.call('PEXPIRE', key, window)
end

local wait, block, calls_of_range = judge(range, range_buckets, range_block)
local _, report, calls_of_client = judge(client, client_buckets, client_report)
if wait == 0 and counts == '1' then
  count(range_buckets, calls_of_range)
  count(client_buckets, calls_of_client)
end
return {wait, block, report}
