#!lua flags=allow-oom
-- Refund an event that did not happen. Where its token was counted, repeating this is harmless. A limit above 64 counts no
-- tokens: it needs the moment, which only the owner of the event has, and gives once. window.lua describes the keys.
--
-- KEYS    limits, then the blocks of those that the fraud guard judges, all in one slot
-- ARGV    1 token of the event   2 moment at which it was counted, or ''   3 rules (decision.lua)
local keys, token, moment, rules = KEYS, unpack(ARGV)

refund(keys, rules, token, tonumber(moment))
