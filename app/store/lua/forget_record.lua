-- Forget a verification, if it is of the phone. Those who listen to it are told that it is gone.
--
-- KEYS    1 record
-- ARGV    1 phone digest
-- RETURN  how many calls it had, or -1 if it is not of the phone

local record = load(KEYS[1])
if not record.q or record.q ~= ARGV[1] then
  return -1
end
local calls = 0
for serial = 1, record.n do
  calls = calls + (record['t' .. serial] and 1 or 0)
end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', 'pv:changes', verification_id(KEYS[1]))
return calls
