#!lua flags=allow-oom
-- Return what a start would meet, and what was tried with the phone before, without changing anything. start_rules.lua
-- precedes it: it lists KEYS and ARGV, and returns what refuses the start.
--
-- RETURN  {'ready', number of the call in its verification, operator or '', {channel, status, … of each call of the
--          client's pending verifications of this purpose, and of one without a code}}
--         {'cooldown' | 'calls_exhausted', ms to wait} | {'limited', name of the limit, ms to wait} | {'not_found'}

local calls = {}
for rest in ((phone[owner] or '') .. ',' .. (phone[DIALLED_REST] or '')):gmatch('%x+') do
  local record = load_record(key_beside(phone_key, rest))
  if record[CLIENT] and not record[STATUS] then
    for number = 1, record[LAST_CALL] do
      if record[CALL_STATUS .. number] then
        calls[#calls + 1] = of_call(record, CHANNEL, number)
        calls[#calls + 1] = record[CALL_STATUS .. number]
      end
    end
  end
end
return {'ready', next_number, phone[OPERATOR] or '', calls}
