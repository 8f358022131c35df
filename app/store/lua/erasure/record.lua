#!lua flags=allow-oom
-- Erase a verification, if it is of the phone, and notify its followers.
--
-- KEYS    1 record
-- ARGV    1 phone digest
-- RETURN  the numbers of its calls, or nothing if it is not of the phone
local key, phone_digest = KEYS[1], ARGV[1]

local record = load_record(key)
if record[PHONE_DIGEST] ~= phone_digest then return nil end
local calls = {}
for number = 1, record[LAST_CALL] do
  if record[CALL_STATUS .. number] then
    calls[#calls + 1] = number
  end
end
redis.call('DEL', key)
notify_followers(key, record)
return calls
