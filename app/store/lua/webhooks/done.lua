#!lua flags=allow-oom
-- Remove an event that was delivered, or that no endpoint wants. take.lua describes the key.
--
-- KEYS    1 stream
-- ARGV    1 group   2 entry
local stream = KEYS[1]
local group, entry = unpack(ARGV)

redis.call('XACK', stream, group, entry)
redis.call('XDEL', stream, entry)
