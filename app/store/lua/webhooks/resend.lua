#!lua flags=allow-oom
-- Deliver an event that was a dead letter. take.lua describes the key.
--
-- KEYS    1 outbox
-- ARGV    1 event
local outbox, event = KEYS[1], ARGV[1]

add_to_outbox(outbox, now_ms(), event)
