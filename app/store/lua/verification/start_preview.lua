#!lua flags=allow-oom
-- Return what a start would meet, and what was tried with the phone before, without changing anything. Both lists of
-- arguments are those of start_rules.lua, which stands before this.
--
-- RETURN  {'ready', number of the call in its verification, operator or '', {channel, state, … of each earlier call, of
--          the client's pending verifications of this purpose and of a reverse call that waits}}
--         {'cooldown' | 'calls_exhausted', ms to wait} | {'limited', name of the limit, ms to wait} | {'not_found'}

local refused = refusal()
if refused then
  return refused
end
local calls = {}
for rest in ((phone[owner] or '') .. ',' .. (phone.d or '')):gmatch('%x+') do
  local record = load(record_key(KEYS[1], rest))
  if record.c and not record.s then
    for number = 1, record.n do
      if record['t' .. number] then
        calls[#calls + 1] = record['h' .. number]
        calls[#calls + 1] = record['t' .. number]
      end
    end
  end
end
return {'ready', is_resend and named.n + 1 or 1, phone.o or '', calls}
