-- The calls of a range of numbers, or of a client, and the verifications that succeeded, by which the fraud guard judges.
-- They end the string of the limit on these calls (limits/window.lua), in parts of 14 bytes:
--     if there are several buckets, sums over all but the latest: mature calls, successes, until when both hold
--     buckets of time, oldest first: began, calls, successes
--
-- {l:<digest>}:b, {limits}:<digest>:b    string: the block of a range, the report of a client, as a JSON array:
--     since   ends   level   calls   successes
-- It outlives its end, so that the next one has a higher level.

local BUCKET = '>I6I4I4'
local SUMS = '>I4I4I6'
local PART_BYTES = 14

local function latest_bucket(calls)
  return struct.unpack(BUCKET, calls, #calls - PART_BYTES + 1)
end

local function with_latest_bucket(calls, ...)
  return calls:sub(1, -PART_BYTES - 1) .. struct.pack(BUCKET, ...)
end

-- Drop the buckets that have left the window, and sum up all but the latest, as one of them has matured or left, or another
-- one joined them.
local function sum_up(limit, now, window, bucket_length, maturity)
  local text, kept, mature_calls, succeeded, hold_until = limit.calls, {}, 0, 0, now + window
  for first = PART_BYTES + 1, #text - PART_BYTES, PART_BYTES do
    local began, calls, successes = struct.unpack(BUCKET, text, first)
    local matures, leaves = began + bucket_length + maturity, began + window
    if leaves > now then
      kept[#kept + 1] = text:sub(first, first + PART_BYTES - 1)
      mature_calls = mature_calls + (matures <= now and calls or 0)
      succeeded = succeeded + successes
      hold_until = math.min(hold_until, leaves, matures > now and matures or leaves)
    end
  end
  limit.calls = struct.pack(SUMS, mature_calls, succeeded, hold_until) .. table.concat(kept) .. text:sub(-PART_BYTES)
  return mature_calls, succeeded
end

-- Return the calls of the window that had time to succeed, and all its successes.
local function tally(limit, now, window, bucket_length, maturity)
  local text = limit.calls
  if text == '' then return 0, 0 end
  local began, calls, successes = latest_bucket(text)
  if began + window <= now then return 0, 0 end
  local mature_calls, succeeded, hold_until = 0, 0, nil
  if #text > PART_BYTES then
    mature_calls, succeeded, hold_until = struct.unpack(SUMS, text)
    if hold_until <= now then
      mature_calls, succeeded = sum_up(limit, now, window, bucket_length, maturity)
    end
  end
  return mature_calls + (began + bucket_length + maturity <= now and calls or 0), succeeded + successes
end

-- Return the block of a subject if it has one now, and whether this has made it, because the conversion is low. Then the
-- calls so far count no more.
local function judge(limit, last, now, rules)
  local block = last and cjson.decode(last)
  if block and block[2] > now then return block, false end
  local window, bucket_length, maturity, min_calls, min_conversion, first_block, longest_block = unpack(rules)
  local calls, successes = tally(limit, now, window, bucket_length, maturity)
  if calls < min_calls or successes / calls >= min_conversion then return nil, false end
  local level = block and block[3] + 1 or 1
  limit.calls = ''
  return {now, now + math.min(first_block * 2 ^ (level - 1), longest_block), level, calls, successes}, true
end

local function count_call(limit, now, bucket_length)
  local text = limit.calls
  if text == '' then
    limit.calls = struct.pack(BUCKET, now, 1, 0)
    return
  end
  local began, calls, successes = latest_bucket(text)
  if began + bucket_length > now then
    limit.calls = with_latest_bucket(text, began, calls + 1, successes)
  else
    local buckets = #text > PART_BYTES and text:sub(PART_BYTES + 1) or text
    limit.calls = struct.pack(SUMS, 0, 0, 0) .. buckets .. struct.pack(BUCKET, now, 1, 0)
  end
end

local function count_successes(limit, succeeded)
  local began, calls, successes = latest_bucket(limit.calls)
  limit.calls = with_latest_bucket(limit.calls, began, calls, successes + succeeded)
end

-- Refund the call of a moment: in its bucket, or if that has none left in the last one before that has.
local function refund_call(limit, moment)
  local text, has_sums = limit.calls, #limit.calls > PART_BYTES
  for first = #text - PART_BYTES + 1, has_sums and PART_BYTES + 1 or 1, -PART_BYTES do
    local began, calls, successes = struct.unpack(BUCKET, text, first)
    if began <= moment and calls > 0 then
      text = text:sub(1, first - 1) .. struct.pack(BUCKET, began, calls - 1, successes) .. text:sub(first + PART_BYTES)
      if has_sums then
        limit.calls = struct.pack(SUMS, 0, 0, 0) .. text:sub(PART_BYTES + 1)
      else
        limit.calls = (calls > 1 or successes > 0) and text or ''
      end
      return
    end
  end
end
