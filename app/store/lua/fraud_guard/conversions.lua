-- The calls of a range of numbers, or of a client, and the verifications that succeeded, by which the fraud guard judges.
-- They are kept with the limit on its calls: limits/window.lua.
--
-- conversions    array: began   calls   successes   of the latest bucket of time
--                       earlier, the buckets before it, 14 bytes each: began, calls, successes
--                       mature_calls   succeeded   sums over those, which hold until tally_until
-- block          array: since   ends   level   calls   successes
--
-- The rules of the fraud guard are an array: for how long a call counts, the length of a bucket, the maturity of a call, the
-- fewest calls to be judged by, the lowest conversion, the first and the longest block, for how long after a block its
-- level is remembered.

local BUCKET = '>I6I4I4'
local BUCKET_BYTES = 14

local function is_blocked(limit, now)
  return limit.block and limit.block[2] > now
end

-- Sum the earlier buckets up anew: one of them has matured or left the window, or another one joined them.
local function sum_up(conversions, now, window, bucket_length, maturity)
  local kept, mature_calls, succeeded, tally_until = {}, 0, 0, now + window
  local earlier, position = conversions[4], 1
  while position < #earlier do
    local began, calls, successes, next_position = struct.unpack(BUCKET, earlier, position)
    local matures, leaves = began + bucket_length + maturity, began + window
    if leaves > now then
      kept[#kept + 1] = earlier:sub(position, next_position - 1)
      succeeded = succeeded + successes
      mature_calls = mature_calls + (matures <= now and calls or 0)
      tally_until = math.min(tally_until, leaves, matures > now and matures or leaves)
    end
    position = next_position
  end
  conversions[4], conversions[5], conversions[6], conversions[7] = table.concat(kept), mature_calls, succeeded, tally_until
end

-- Return the calls of the window that had time to succeed, and all its successes.
local function tally(conversions, now, window, bucket_length, maturity)
  if not conversions or conversions[1] + window <= now then return 0, 0 end
  if conversions[7] <= now then
    sum_up(conversions, now, window, bucket_length, maturity)
  end
  local began, calls, successes, _, mature_calls, succeeded = unpack(conversions)
  return mature_calls + (began + bucket_length + maturity <= now and calls or 0), succeeded + successes
end

-- Block the subject of a limit if its conversion is low. Return whether this has done so.
local function judge(limit, now, rules)
  if is_blocked(limit, now) then return false end
  local window, bucket_length, maturity, min_calls, min_conversion, first_block, longest_block, memory = unpack(rules)
  local calls, successes = tally(limit.conversions, now, window, bucket_length, maturity)
  if calls < min_calls + 0 or successes / calls >= min_conversion + 0 then return false end
  local last = limit.block
  local level = last and last[2] + memory > now and last[3] + 1 or 1
  local ends = now + math.min(first_block * 2 ^ (level - 1), longest_block)
  limit.block, limit.conversions = {now, ends, level, calls, successes}, nil
  return true
end

local function count_call(limit, now, bucket_length)
  local conversions = limit.conversions
  if conversions and conversions[1] + bucket_length > now then
    conversions[2] = conversions[2] + 1
    return
  end
  local earlier = ''
  if conversions then
    local began, calls, successes, before = unpack(conversions)
    earlier = before .. struct.pack(BUCKET, began, calls, successes)
  end
  limit.conversions = {now, 1, 0, earlier, 0, 0, 0}
end

-- Refund the call of a moment: in its bucket, or if that has none left in the last one before that has.
local function refund_call(limit, moment)
  local conversions = limit.conversions
  if not conversions then return end
  local began, calls, successes, earlier = unpack(conversions)
  if began <= moment and calls > 0 then
    conversions[2] = calls - 1
  else
    for first = #earlier - BUCKET_BYTES + 1, 1, -BUCKET_BYTES do
      local began_then, calls_then, successes_then = struct.unpack(BUCKET, earlier, first)
      if began_then <= moment and calls_then > 0 then
        local bucket = struct.pack(BUCKET, began_then, calls_then - 1, successes_then)
        conversions[4], conversions[7] = earlier:sub(1, first - 1) .. bucket .. earlier:sub(first + BUCKET_BYTES), 0
        return
      end
    end
  end
  if conversions[2] == 0 and successes == 0 and earlier == '' then
    limit.conversions = nil
  end
end
