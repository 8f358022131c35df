#!lua flags=allow-oom
-- Refund an event that did not happen. Where its token was counted, repeating this is harmless. A limit above 64 counts no
-- tokens: it needs the moment, which only the owner of the event has, and gives once. window.lua describes the keys.
--
-- KEYS    limits, all in one slot
-- ARGV    1 token of the event   2 moment at which it was counted, or ''
--         3… period of each limit, and '1' if the fraud guard judges its subject, else '0'
local keys, token, moment = KEYS, ARGV[1], tonumber(ARGV[2])
local function rule(i)
  return ARGV[2 * i + 1] + 0, ARGV[2 * i + 2] == '1'
end

local limits = {}
for i, key in ipairs(keys) do
  limits[i] = load_limit(key)
end
for i, key in ipairs(keys) do
  local period, is_guarded = rule(i)
  local limit, total = limits[i], limits[i].total
  remove_event(limit, period, token, moment)
  local is_refunded = limit.total < total
  if moment and is_guarded then
    refund_call(limit, moment)
  end
  if is_refunded or moment and is_guarded and limit.conversions then
    save_limit(key, limit)
  end
end
