#!lua flags=allow-oom
-- Refund an event that did not happen. Harmless when repeated.
--
-- KEYS    sorted sets of the limits
-- ARGV    1 token of the event
local keys, token = KEYS, ARGV[1]

for _, key in ipairs(keys) do
  redis.call('ZREM', key, token)
end
