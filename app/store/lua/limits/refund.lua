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
  limits[i] = read_limit(redis.call('GET', key))
end
for i, key in ipairs(keys) do
  local period, is_guarded = rule(i)
  local limit = limits[i]
  local total, calls = limit.total, limit.calls
  remove_event(limit, period, token, moment)
  if moment and is_guarded then
    refund_call(limit, moment)
  end
  if limit.total < total or limit.calls ~= calls then
    save_limit(key, limit)
  end
end
