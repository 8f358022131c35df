-- Write that the person dialled the number of a reverse call, as the provider's hook says. Repeated it changes nothing.
--
-- KEYS    1 record   2 stream of events, if the client has a webhook
-- ARGV    1 serial   2 provider's reference   3 phone that called   4 lifetime of a call ms   5 ms before which nobody dials
-- RETURN  'confirmed' | 'confirmed_before' | 'not_found' | 'too_early'
--         'not_the_caller'   another phone called, or the hook only announces the number

local key, serial = KEYS[1], ARGV[1]
local record = load(key)
if record['h' .. serial] ~= 'reverse_call' or record['f' .. serial] ~= ARGV[2] then
  return 'not_found'
elseif record.p ~= ARGV[3] then
  return 'not_the_caller'
elseif record['k' .. serial] or record.s == 'verified' then
  return 'confirmed_before'
end

local now, expires = now_ms(), tonumber(record['x' .. serial])
if record.s or expires <= now then
  return 'not_found'
elseif now < expires - ARGV[4] + ARGV[5] then
  return 'too_early'
end
redis.call('HSET', key, 'k' .. serial, 1, 't' .. serial, 'completed')
tell(key, 'call.status_changed', KEYS[2])
return 'confirmed'
