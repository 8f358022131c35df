-- How many events count against a limit: exactly, or a little too many, never too few, in any window of its period.
--
-- {l:<digest>}, or {limits}:<digest> of a client or all    string: a limit over an address, a range, a client or all
--     4 bytes     how many events count, as of the last write
--     1 byte      how many entries follow
--     9 bytes     of each entry, oldest first: a moment, and the token of one event, or a number of events
--     the calls of its subject, if the fraud guard judges it: fraud_guard/conversions.lua
--
-- A limit of up to EXACT events has an entry for each. A larger one has an entry for each sub-window, an EXACTth of its
-- period, with its end as the moment: an event leaves up to one sub-window late. So a limit has 65 entries at most, and
-- what an entry means does not change when a setting does.

local EXACT = 64
local HEAD = '>I4I1'
local HEAD_BYTES = 5
local ENTRY = '>I5I4'
local ENTRY_BYTES = 9
local FIRST_MOMENT = 1577836800000 -- 2020; from there five bytes reach to 2054
local FIRST_TOKEN = 2 ^ 31 -- any smaller number is one of events

local function token_number(token)
  return FIRST_TOKEN + tonumber(token, 16) % FIRST_TOKEN
end

-- Return the moment and the number of the entry at a position, and the position of the next one.
local function entry_at(entries, position)
  local moment, number, next_position = struct.unpack(ENTRY, entries, position)
  return moment + FIRST_MOMENT, number, next_position
end

local function make_entry(moment, number)
  return struct.pack(ENTRY, moment - FIRST_MOMENT, number)
end

local function sub_window(period)
  return math.ceil(period / EXACT)
end

local function events_of(number)
  return number < FIRST_TOKEN and number or 1
end

local function read_limit(text)
  if not text then return {total = 0, entries = '', calls = ''} end
  local total, count = struct.unpack(HEAD, text)
  local ends = HEAD_BYTES + count * ENTRY_BYTES
  return {total = total, entries = text:sub(HEAD_BYTES + 1, ends), calls = text:sub(ends + 1)}
end

-- Save a limit with a lifetime, its period after an event, or without one with that which it has. One without content is
-- deleted.
local function save_limit(key, limit, lifetime)
  local entries, calls = limit.entries, limit.calls
  if entries == '' and calls == '' then
    redis.call('DEL', key)
    return
  end
  local text = struct.pack(HEAD, limit.total, #entries / ENTRY_BYTES) .. entries .. calls
  if lifetime then
    redis.call('SET', key, text, 'PX', lifetime)
  else
    redis.call('SET', key, text, 'KEEPTTL')
  end
end

-- Drop the events that have left the window.
local function slide(limit, now, period)
  local entries, first = limit.entries, 1
  while first < #entries do
    local moment, number = entry_at(entries, first)
    if moment + period > now then break end
    limit.total = limit.total - events_of(number)
    first = first + ENTRY_BYTES
  end
  if first > 1 then
    limit.entries = entries:sub(first)
  end
end

-- Return how long until there is room for another among `count` events, or 0.
local function wait_for_room(limit, now, count, period)
  local too_many, position, moment, number = limit.total - count + 1, 1, now - period, nil
  while too_many > 0 do
    moment, number, position = entry_at(limit.entries, position)
    too_many = too_many - events_of(number)
  end
  return moment + period - now
end

local function count_event(limit, now, count, period, token)
  local entries, moment, number = limit.entries, now, nil
  local last_moment, last_number = 0, FIRST_TOKEN
  if entries ~= '' then
    last_moment, last_number = entry_at(entries, #entries - ENTRY_BYTES + 1)
  end
  if count <= EXACT then
    number = token_number(token)
  else
    local length = sub_window(period)
    moment, number = now - now % length + length - 1, 1
    if last_number < FIRST_TOKEN and last_moment >= moment then
      entries, number = entries:sub(1, -ENTRY_BYTES - 1), last_number + 1
    end
  end
  -- The clock of another server, after a failover, may be behind.
  limit.entries = entries .. make_entry(math.max(moment, last_moment), number)
  limit.total = limit.total + 1
end

-- Remove the event with a token, or else, if its moment is given, one of the sub-window that it was counted in, or if that
-- has none of the one before: this keeps too many events, and never too few.
local function remove_event(limit, period, token, moment)
  local entries, number_of_token, length = limit.entries, token_number(token), sub_window(period)
  for first = #entries - ENTRY_BYTES + 1, 1, -ENTRY_BYTES do
    local ends, number = entry_at(entries, first)
    local is_in_it = moment and number < FIRST_TOKEN and ends < moment + length
    if number == number_of_token or is_in_it then
      local rest = is_in_it and number > 1 and make_entry(ends, number - 1) or ''
      limit.entries = entries:sub(1, first - 1) .. rest .. entries:sub(first + ENTRY_BYTES)
      limit.total = limit.total - 1
      return
    end
  end
end
