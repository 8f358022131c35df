#!lua flags=allow-oom
-- Deliver an event that was a dead letter. take.lua describes the key.
--
-- KEYS    1 outbox
-- ARGV    1 event
add_to_outbox(KEYS[1], now_ms(), ARGV[1])
