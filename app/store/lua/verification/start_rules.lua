-- The rules of a start: start_preview.lua asks what they say, start.lua asks again and then stores the call.
--
-- KEYS    1 phone   2 record of a new verification   3 stream of events, if the client has a webhook
-- ARGV    1 client   2 purpose   3 phone   4 channel   5 code length, or 0   6 code digest, or ''
--         7 rest of the id of the verification that the request names, or ''   8 number of the call, for start.lua
--         9 lifetime ms   10 calls allowed   11 checks allowed   12 '1' for a test number, else '0'
--         13 token of the start, '' in a preview   14 digest of the address, or ''   15 failed checks of a phone allowed,
--         16 from one address, 17 in how many ms   18 number of cooldowns, and they: ms…   number of limits of calls to a phone, and they: name, count, ms…

local client, purpose, phone_number, channel = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local code_length, code_digest, named_rest, call_number = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local lifetime, calls_allowed, checks_allowed, is_test = tonumber(ARGV[9]), ARGV[10], ARGV[11], ARGV[12] == '1'
local token, address = ARGV[13], ARGV[14]
local failed_allowed, failed_share, failed_period = tonumber(ARGV[15]), tonumber(ARGV[16]), ARGV[17]

local cooldowns, limits, longest_period = {}, {}, 0
local next_argument = 19
for i = 1, ARGV[18] do
  cooldowns[i] = tonumber(ARGV[next_argument])
  next_argument = next_argument + 1
end
for i = 1, ARGV[next_argument] do
  local at = next_argument + 3 * i - 2
  limits[i] = {name = ARGV[at], count = tonumber(ARGV[at + 1]), period = tonumber(ARGV[at + 2])}
  longest_period = math.max(longest_period, limits[i].period)
end

local now = now_ms()
local owner = client .. ':' .. purpose
local phone = load(KEYS[1])
local next_call = tonumber(phone.r or 0)
local named_key = named_rest ~= '' and record_key(KEYS[1], named_rest) or nil
local named = named_key and load(named_key) or {}

-- A reverse call is a verification of its own, which no other call joins: it has no code, so it is not found by phone, and
-- its id is all the proof of who asked for it.
local is_reverse = channel == 'reverse_call' and not is_test
local is_resend = named_key and not is_reverse and (named.h ~= 'reverse_call' or named.z)

-- Of calls to one verification, those that the provider refused among them: scripts look at each.
local MOST_CALLS = 100
-- Longer than a provider is waited for, unless whoever waits has died.
local ASKED_MS = 15000

-- Returns how long until the phone may be called. While the provider is asked for a call it is not known whether there is
-- one, so whoever comes meanwhile is told to come again at once.
local function cooldown()
  local wait = next_call - now
  local rest, number = (phone.w or ''):match('^(%x+):(%d+)$')
  local asked = wait > 0 and rest and load(record_key(KEYS[1], rest)) or {}
  if asked.c and asked['t' .. number] == 'initiated' and not asked['f' .. number]
      and asked['x' .. number] - lifetime + ASKED_MS > now then
    return math.min(wait, 1000)
  end
  return wait
end

local placed = recent(phone.l, now, longest_period)
local calls_left = {}

-- Returns why the start is refused, as start.lua returns it, or nothing.
local function refusal()
  if named_key and (named.c ~= client or named.u ~= purpose or named.p ~= phone_number or named.s
      or is_test ~= (named.z ~= nil)) then
    return {'not_found'}
  elseif is_resend and (tonumber(named.m) <= 0 or tonumber(named.n) >= MOST_CALLS) then
    return {'calls_exhausted', math.max(redis.call('PEXPIRETIME', named_key), next_call) - now}
  elseif is_test then
    return nil
  elseif next_call > now then
    return {'cooldown', cooldown()}
  end

  -- One of a phone at a time, for all clients: the person who dials must not confirm somebody else's with it.
  if is_reverse and phone.d then
    local other_key = record_key(KEYS[1], phone.d)
    local other = load(other_key)
    if other.c and not other.s then
      return {'cooldown', redis.call('PEXPIRETIME', other_key) - now}
    end
  end

  -- A code that nobody may check is not worth a call.
  local failed = recent(phone.b, now, failed_period)
  local _, wait = used(failed, now, failed_allowed, failed_period)
  if wait > 0 then
    return {'limited', 'failed_checks_per_phone', wait}
  end
  if address ~= '' then
    _, wait = used(of_address(failed, address), now, failed_share, failed_period)
    if wait > 0 then
      return {'limited', 'failed_checks_per_phone_and_address', wait}
    end
  end

  for i, limit in ipairs(limits) do
    local inside, wait_for_call = used(placed, now, limit.count, limit.period)
    if wait_for_call > 0 then
      return {'limited', limit.name, wait_for_call}
    end
    calls_left[i] = limit.count - inside - 1
  end
end
