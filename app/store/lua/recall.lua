-- Recall what was tried with a phone, so that another call can be made in another way.
--
-- KEYS    1 phone
-- ARGV    1 client:purpose
-- RETURN  {operator or '', {channel, state, … of each call of the pending verification}}

local phone = load(KEYS[1])
local record = phone[ARGV[1]] and load(record_key(KEYS[1], phone[ARGV[1]])) or {}
local calls = {}
if record.c and not record.s then
  for serial = 1, record.n do
    if record['t' .. serial] then
      calls[#calls + 1] = record['h' .. serial]
      calls[#calls + 1] = record['t' .. serial]
    end
  end
end
return {phone.o or '', calls}
