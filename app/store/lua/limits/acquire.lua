-- Count an event against limits if all have room, and the fraud guard has blocked none of their subjects; without a token
-- only say so. decision.lua describes rules and decision, window.lua the keys.
--
-- KEYS    limits, then the blocks of those that the fraud guard judges, all in one slot
-- ARGV    1 token of the event, or ''   2 rules
-- RETURN  the decision
local keys, token, rules = KEYS, unpack(ARGV)

return (acquire(keys, rules, token, now_ms()))
