-- Cancel a pending verification.
--
-- KEYS    1 record   2 journal   3 outbox, if the client has a webhook
-- ARGV    1 client
-- RETURN  {'canceled', now, expires, record}   by this or before
--         {'locked', ms to wait}
--         {'not_found' | 'verified_before'}
local key, journal, outbox = unpack(KEYS)
local client = ARGV[1]

local now, record, packed = now_ms(), load_record(key)
if record[CLIENT] ~= client then
  return {'not_found'}
elseif record[STATUS] == 'verified' then
  return {'verified_before'}
elseif record[STATUS] == 'locked' then
  return {'locked', until_next_call(key, record, now)}
elseif not record[STATUS] then
  packed = finish(key, record, {}, 'canceled', journal, outbox)
else
  write_again(key, record)
end
return {'canceled', now, redis.call('PEXPIRETIME', key), packed}
