-- Count an event against limits if all have room, and the fraud guard has blocked none of their subjects; without a token
-- only say so. The guard judges in either case: a start may get no further than the preview. window.lua describes the keys.
--
-- KEYS    limits, all in one slot
-- ARGV    1 token of the event, or ''   2 … 9 rules of the fraud guard (conversions.lua lists them)
--         10… count and period of each limit, and 'block' or 'report' if the fraud guard judges its subject, or ''
-- RETURN  {now, {how many are left of each limit …}, {ms until each has room, or 0 …},
--          {{number of a limit, 1 if this has blocked its subject, since, ends, level, calls, successes} of each that is
--            blocked or reported}}
local keys, token, rules = KEYS, ARGV[1], {unpack(ARGV, 2, 9)}
local window, bucket_length, memory = rules[1], rules[2], rules[8]
local function rule(i)
  return ARGV[3 * i + 7] + 0, ARGV[3 * i + 8] + 0, ARGV[3 * i + 9]
end

local now, limits, left, waits, verdicts, has_room, is_changed = now_ms(), {}, {}, {}, {}, true, {}
for i, key in ipairs(keys) do
  local count, period, guard = rule(i)
  local limit = load_limit(key)
  slide(limit, now, period)
  limits[i], left[i], waits[i] = limit, count - limit.total, wait_for_room(limit, now, count, period)
  has_room = has_room and waits[i] == 0
  if guard ~= '' then
    is_changed[i] = judge(limit, now, rules)
    if is_blocked(limit, now) then
      verdicts[#verdicts + 1] = {i, is_changed[i] and 1 or 0, unpack(limit.block)}
      has_room = has_room and guard ~= 'block'
    end
  end
end

local is_counted = has_room and token ~= ''
for i, key in ipairs(keys) do
  local count, period, guard = rule(i)
  local limit = limits[i]
  if is_counted then
    add_event(limit, now, count, period, token)
    left[i] = left[i] - 1
    if guard ~= '' then
      count_call(limit, now, bucket_length)
    end
  end
  if is_counted or is_changed[i] then
    local of_block = limit.block and limit.block[2] + memory - now or 0
    save_limit(key, limit, math.max(period, limit.conversions and window or 0, of_block))
  end
end
return {now, left, waits, verdicts}
