-- Check what verifications need of Redis: write a key, read it, and have the right to every command of the other scripts.
--
-- {probe}    string: the moment of the last probe
--
-- KEYS    1 probe
-- ARGV    1 for how long it is kept
-- RETURN  1, or an error NOPERM
local key, kept = KEYS[1], ARGV[1]

-- Without those that only erasure/ needs, for the user of the command line.
local COMMANDS = {
  'TIME', 'GET', 'MGET', 'SET', 'EXISTS', 'DEL', 'PEXPIRE', 'PEXPIREAT', 'PEXPIRETIME',
  'HGET', 'HGETALL', 'HMGET', 'HSET', 'HDEL', 'HINCRBY',
  'ZADD', 'ZCARD', 'ZCOUNT', 'ZRANGE', 'ZREM', 'ZSCORE',
  'XADD', 'XRANGE', 'XREVRANGE',
}

local moment = tostring(now_ms())
redis.call('SET', key, moment, 'PX', kept)
if redis.call('GET', key) ~= moment then
  return redis.error_reply('ERR a key that was written has another value')
end

local function require_right(command, ...)
  if not redis.acl_check_cmd(command, ...) then
    return redis.error_reply('NOPERM this user may not use ' .. command)
  end
end

local denied = require_right('PUBLISH', changes_channel(key), '')
for _, command in ipairs(COMMANDS) do
  -- More arguments than some take: only the positions of keys are checked.
  denied = denied or require_right(command, key, key, key, key)
end
return denied or 1
