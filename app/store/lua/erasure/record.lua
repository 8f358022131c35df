#!lua flags=allow-oom
-- Forget a verification, if it is of the phone. Those who listen to it are told that it is gone.
--
-- KEYS    1 record
-- ARGV    1 phone digest
-- RETURN  the serials of its calls, or nothing if it is not of the phone

local record = load(KEYS[1])
if not record.q or record.q ~= ARGV[1] then
  return nil
end
local calls = {}
for serial = 1, record.n do
  if record['t' .. serial] then
    calls[#calls + 1] = serial
  end
end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', 'pv:changes', verification_id(KEYS[1]))
return calls
