#!lua flags=allow-oom
-- Return the latest changes by admin keys.
--
-- KEYS    1 stream
-- ARGV    1 id of the latest, or '+'   2 most
-- RETURN  {{id, {'admin', name, 'action', action}}, …}
local audit = KEYS[1]
local latest, most = unpack(ARGV)

return redis.call('XREVRANGE', audit, latest, '-', 'COUNT', most)
