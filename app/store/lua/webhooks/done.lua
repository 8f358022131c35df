#!lua flags=allow-oom
-- Forget an event that was delivered, or that nobody wants.
--
-- KEYS    1 stream
-- ARGV    1 group   2 entry
-- RETURN  nothing

if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2]) -- the group may be gone; the entry must not stay all the same
  redis.call('XDEL', KEYS[1], ARGV[2])
end
