#!lua flags=allow-oom
-- Recall what was tried with a phone, so that another call can be made in another way.
--
-- KEYS    1 phone
-- ARGV    1 client:purpose
-- RETURN  {operator or '', {channel, state, … of each call of the pending verification, and of a reverse call that waits}}

local phone = load(KEYS[1])
local calls = {}
for _, id in ipairs({phone[ARGV[1]] or '', phone.d or ''}) do
  local record = id ~= '' and load(record_key(KEYS[1], id)) or {}
  if record.c and not record.s then
    for serial = 1, record.n do
      if record['t' .. serial] then
        calls[#calls + 1] = record['h' .. serial]
        calls[#calls + 1] = record['t' .. serial]
      end
    end
  end
end
return {phone.o or '', calls}
