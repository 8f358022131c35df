#!lua flags=allow-oom
-- Remove an event that was delivered, or that no endpoint wants. take.lua describes the key.
--
-- KEYS    1 stream
-- ARGV    1 group   2 entry
local stream = KEYS[1]
local group, entry = unpack(ARGV)

if redis.call('EXISTS', stream) == 1 then
  redis.pcall('XACK', stream, group, entry) -- the group may be gone; the entry must not stay all the same
  redis.call('XDEL', stream, entry)
end
