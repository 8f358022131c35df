-- Judge the range and the client of a call, and count the call if it is about to be placed and its range is not blocked.
--
-- pv:{guard}:blocks      hash: the ranges that are or were blocked, the clients that are or were reported: name → JSON
--     object of: since   ends   level   calls   successes
-- pv:{guard}:n:<name>    hash: the calls to a range, or of a client, and their successes, in buckets of time
--     began   calls   successes   of the latest bucket
--     earlier: "<began>:<calls>:<successes> …", the buckets before it
--     mature_calls   succeeded: sums over those, which hold until tally_until
--
-- KEYS    1 blocks   2 buckets of the range   3 buckets of the client
-- ARGV    1 name of the range   2 name of the client   3 window   4 length of a bucket   5 maturity
--         6 fewest calls to be judged by   7 lowest conversion   8 first block   9 longest block
--         10 for how long after a block its level is remembered   11 '1' to count the call, '0' to ask only
-- RETURN  {ms to wait, or 0,
--          {level, calls, successes} if this has blocked the range, else {},
--          {level, calls, successes} if this has reported the client, else {}}
local blocks, range_key, client_key = unpack(KEYS)
local range, client, window, bucket_length, maturity, min_calls, min_conversion, first_block, longest_block, memory,
  counts = unpack(ARGV)

local now = now_ms()

-- Sum the earlier buckets up anew: one of them has matured or left the window, or another one joined them.
local function sum_up(key, buckets)
  local kept, mature_calls, succeeded, tally_until = {}, 0, 0, now + window
  for bucket, began, calls, successes in buckets.earlier:gmatch('((%d+):(%d+):(%d+))') do
    local matures, leaves = began + bucket_length + maturity, began + window
    if leaves > now then
      kept[#kept + 1] = bucket
      succeeded = succeeded + successes
      mature_calls = mature_calls + (matures <= now and calls or 0)
      tally_until = math.min(tally_until, leaves, matures > now and matures or leaves)
    end
  end
  buckets.earlier = table.concat(kept, ' ')
  redis.call('HSET', key, 'earlier', buckets.earlier, 'mature_calls', mature_calls, 'succeeded', succeeded, 'tally_until',
    tally_until)
  return mature_calls, succeeded
end

-- Return the calls of the window that had time to succeed, and all its successes.
local function tally(key, buckets)
  if not buckets.began or buckets.began + window <= now then return 0, 0 end
  local mature_calls, succeeded = buckets.mature_calls, buckets.succeeded
  if tonumber(buckets.tally_until) <= now then
    mature_calls, succeeded = sum_up(key, buckets)
  end
  local is_mature = buckets.began + bucket_length + maturity <= now
  return mature_calls + (is_mature and buckets.calls or 0), succeeded + buckets.successes
end

-- Return for how long the name is blocked or reported, by which facts, if it is by this, and what is left of its buckets.
local function judge(name, key)
  local entry, buckets = redis.call('HGET', blocks, name), load(key)
  local block = entry and cjson.decode(entry) or {ends = 0}
  if block.ends > now then return block.ends - now, {}, buckets end
  local calls, successes = tally(key, buckets)
  if calls < tonumber(min_calls) or successes / calls >= tonumber(min_conversion) then return 0, {}, buckets end
  local level = block.ends + memory > now and block.level + 1 or 1
  local length = math.min(first_block * 2 ^ (level - 1), longest_block)
  block = {since = now, ends = now + length, level = level, calls = calls, successes = successes}
  redis.call('HSET', blocks, name, cjson.encode(block))
  keep_until(blocks, block.ends + memory)
  redis.call('DEL', key)
  return length, {level, calls, successes}, {}
end

local function count(key, buckets)
  if buckets.began and buckets.began + bucket_length > now then
    redis.call('HINCRBY', key, 'calls', 1)
    return
  end
  local earlier = ''
  if buckets.began then
    earlier = ('%s %s:%s:%s'):format(buckets.earlier, buckets.began, buckets.calls, buckets.successes)
  end
  redis.call('HSET', key, 'began', now, 'calls', 1, 'successes', 0, 'earlier', earlier, 'mature_calls', 0, 'succeeded', 0,
    'tally_until', 0)
  redis.call('PEXPIRE', key, window) -- by then the latest bucket leaves the window
end

local wait, block, calls_of_range = judge(range, range_key)
local _, report, calls_of_client = judge(client, client_key)
if wait == 0 and counts == '1' then
  count(range_key, calls_of_range)
  count(client_key, calls_of_client)
end
return {wait, block, report}
