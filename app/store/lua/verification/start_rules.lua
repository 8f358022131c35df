-- The rules of a start, which precede start_preview.lua and start.lua, which stores the call.
--
-- KEYS    1 phone   2 record of a new verification   3 journal   4… other limits of the call, as of acquire.lua
--         then the outbox, if the client has a webhook
-- ARGV    1 client   2 purpose   3 phone   4 channel   5 '1' if it has no code and the person dials   6 '1' for a test number
--         7 code length, or 0   8 code digest, or ''   9 rest of the id of the verification that is called again, or ''
--         10 number of the call, for start.lua   11 checks allowed   12 token of the start, '' in a preview
--         13 digest of the address, or ''   14 reference and 15 consent, as in layout.py, or ''
--         16 operator of the phone's range, or ''   17 how long the journal is kept; 0: there is none
--         18 policy, in MessagePack: {lifetime of a call, calls allowed, failed checks of a phone allowed, from one address, in
--         which period, {cooldown…}, longest period of a limit of calls to a phone, or 0, {{name, count, period} of each}}
--         19 how many keys the other limits have   20 their rules (limits/decision.lua), or ''
local phone_key, new_key, journal = unpack(KEYS)
local client, purpose, phone_number, channel, dialled, test, code_length, code_digest, named_rest, number, checks_allowed,
  token, address, reference, consent, range_operator, kept_in_journal, policy, other_key_count, other_rules = unpack(ARGV)
local lifetime, calls_allowed, failed_allowed, failed_share, failed_period, cooldowns, longest_period, limits =
  unpack(cmsgpack.unpack(policy))
local other_keys, outbox = {unpack(KEYS, 4, 3 + other_key_count)}, select(4 + other_key_count, unpack(KEYS))
local is_test = test == '1'
local is_dialled = dialled == '1' and not is_test

local now = now_ms()
local owner = client .. ':' .. purpose
local phone = load_record(phone_key)
local next_call = phone[NEXT_CALL] or 0
local named_key = named_rest ~= '' and key_beside(phone_key, named_rest) or nil
local named = named_key and load_record(named_key) or {}
-- A verification without a code is one of its own, which no other call joins.
local is_resend = named_key and not is_dialled and not named[IS_DIALLED]

local placed, left = recent(phone[CALL_LOG], now, longest_period), {}

local MOST_CALLS = 100 -- of one verification, with those that the provider refused: scripts loop over them
local LONGEST_REQUEST = 15000 -- to a provider; after that the process that waits has died

-- Return how long until the phone may be called. While the provider is being asked for a call it is not known whether
-- there will be one, so the wait is short.
local function cooldown()
  local wait = next_call - now
  local rest, asked_number = (phone[ASKED_CALL] or ''):match('^(%x+):(%d+)$')
  local asked = rest and load_record(key_beside(phone_key, rest)) or {}
  if asked[CLIENT] and asked[CALL_STATUS .. asked_number] == 'initiated' and not asked[CALL_REF .. asked_number]
      and expires_at(asked, asked_number) - lifetime + LONGEST_REQUEST > now then
    return math.min(wait, 1000)
  end
  return wait
end

-- Return why the start is refused, as start.lua returns it, or nothing.
local function refusal()
  if named_key and (named[CLIENT] ~= client or named[PURPOSE] ~= purpose or named[PHONE] ~= phone_number
      or named[STATUS] or is_test ~= (named[IS_TEST] ~= nil) or reference ~= '' and reference ~= named[REFERENCE]) then
    return {'not_found'}
  elseif is_resend and (named[CALLS_LEFT] <= 0 or named[LAST_CALL] >= MOST_CALLS) then
    return {'calls_exhausted', math.max(redis.call('PEXPIRETIME', named_key), next_call) - now}
  elseif is_test then
    return nil
  elseif next_call > now then
    return {'cooldown', cooldown()}
  end

  -- One of a phone at a time, for all clients: a person who dials must not confirm another one's verification.
  if is_dialled and phone[DIALLED_REST] then
    local other_key = key_beside(phone_key, phone[DIALLED_REST])
    local other = load_record(other_key)
    if other[CLIENT] and not other[STATUS] then
      return {'cooldown', redis.call('PEXPIRETIME', other_key) - now}
    end
  end

  -- A code that cannot be checked is not worth a call.
  local failed = recent(phone[FAILED_LOG], now, failed_period)
  local _, wait = used(failed, now, failed_allowed, failed_period)
  if wait > 0 then
    return {'limited', 'failed_checks_per_phone', wait}
  elseif address ~= '' then
    _, wait = used(failed, now, failed_share, failed_period, address)
    if wait > 0 then return {'limited', 'failed_checks_per_phone_and_address', wait} end
  end

  for _, limit in ipairs(limits) do
    local name, count, period = unpack(limit)
    local inside, wait_for_call = used(placed, now, count, period)
    if wait_for_call > 0 then return {'limited', name, wait_for_call} end
    left[#left + 1] = count - inside - 1
  end
end

local refused = refusal()
if refused then return refused end
local next_number = is_resend and named[LAST_CALL] + 1 or 1
