-- Do what verifications need of Redis: write a key, read it, and have the right to every command of the other scripts.
--
-- pv:{probe}    string: the moment of the last probe
--
-- KEYS    1 probe
-- ARGV    1 ms to keep it
-- RETURN  1, or an error NOPERM

-- Without those of erasure/ that only the user of the command line needs.
local COMMANDS = {
  'TIME', 'GET', 'SET', 'EXISTS', 'DEL', 'PEXPIRE', 'PEXPIREAT', 'PEXPIRETIME',
  'HGET', 'HGETALL', 'HSET', 'HDEL', 'HEXISTS', 'HINCRBY', 'HKEYS',
  'ZADD', 'ZCARD', 'ZCOUNT', 'ZRANGE', 'ZREM', 'ZREMRANGEBYSCORE', 'ZPOPMIN',
  'XADD', 'XLEN', 'XRANGE', 'XDEL', 'XACK', 'XAUTOCLAIM', 'XREADGROUP',
}

local function require_right(command, ...)
  if not redis.acl_check_cmd(command, ...) then
    return redis.error_reply('NOPERM this user may not use ' .. command)
  end
end

local moment = int(now_ms())
redis.call('SET', KEYS[1], moment, 'PX', ARGV[1])
if redis.call('GET', KEYS[1]) ~= moment then
  return redis.error_reply('ERR a key that was written has another value')
end
local denied = require_right('PUBLISH', 'pv:changes', '') or require_right('XGROUP', 'CREATE', KEYS[1], '', '')
for _, command in ipairs(COMMANDS) do
  -- More arguments than some take: only where keys may stand is looked at.
  denied = denied or require_right(command, KEYS[1], KEYS[1], KEYS[1], KEYS[1])
end
return denied or 1
