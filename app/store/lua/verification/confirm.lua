-- Record that the person dialled the number of a verification without a code, as the provider's callback says. Repeated,
-- it changes nothing.
--
-- KEYS    1 record   2 journal   3 outbox, if the client has a webhook
-- ARGV    1 number of the call   2 provider's reference   3 phone that called   4 lifetime of a call
--         5 time after the start before which dialling is impossible
-- RETURN  'confirmed' | 'confirmed_before' | 'not_found' | 'too_early'
--         'not_the_caller'   another phone called, or the callback only announces the number
local key, journal, outbox = unpack(KEYS)
local number, ref, caller, lifetime, earliest = unpack(ARGV)

local record = load_record(key)
if not record[IS_DIALLED] or record[CALL_REF .. number] ~= ref then
  return 'not_found'
elseif record[PHONE] ~= caller then
  return 'not_the_caller'
elseif record[HAS_DIALLED .. number] or record[STATUS] == 'verified' then
  write_again(key, record)
  return 'confirmed_before'
end

local now, expires = now_ms(), expires_at(record, number)
if record[STATUS] or expires <= now then
  return 'not_found'
elseif now < expires - lifetime + earliest then
  return 'too_early'
end
publish(key, record, {[HAS_DIALLED .. number] = 1, [CALL_STATUS .. number] = 'completed'}, 'call.status_changed', outbox)
append(journal, key, record, 's', number, 'c')
return 'confirmed'
