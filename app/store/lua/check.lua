-- Check a code: it exists, is not final, count, compare, consume - in one step, so that of N right ones just one verifies.
--
-- KEYS    1 record, or phone where ARGV[2] is given
-- ARGV    1 client   2 purpose, where the verification is to be found by phone, else ''   3… candidate code digests
-- RETURN  {'verified', rest of the id, purpose, phone}
--         {'wrong', rest of the id, checks left}
--         {'exhausted', rest of the id, ms to wait}   locked by this check
--         {'locked', ms to wait}                      locked before
--         {'not_found' | 'verified_before' | 'canceled_before'}

local key = KEYS[1]
if ARGV[2] ~= '' then
  local id = redis.call('HGET', key, ARGV[1] .. ':' .. ARGV[2])
  if not id then
    return {'not_found'}
  end
  key = record_key(key, id)
end

local now = now_ms()
local record = load(key)
if record.c ~= ARGV[1] then
  return {'not_found'}
elseif record.s == 'verified' then
  return {'verified_before'}
elseif record.s == 'canceled' then
  return {'canceled_before'}
elseif record.s == 'locked' then
  return {'locked', record.e - now}
end

local function is_right(candidate)
  local held = held_digest(key, candidate)
  for serial = 1, record.n do
    if record['d' .. serial] == held and tonumber(record['x' .. serial]) > now then
      return true
    end
  end
  return false
end

for i = 3, #ARGV do
  if is_right(ARGV[i]) then
    redis.call('HSET', key, 's', 'verified')
    drop_codes(key, record)
    return {'verified', rest_of_id(key), record.u, record.p}
  end
end

local checks_left = record.g - redis.call('HINCRBY', key, 'b', 1)
if checks_left > 0 then
  return {'wrong', rest_of_id(key), checks_left}
end
redis.call('HSET', key, 's', 'locked')
drop_codes(key, record)
return {'exhausted', rest_of_id(key), record.e - now}
