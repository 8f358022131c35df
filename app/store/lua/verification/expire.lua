#!lua flags=allow-oom
-- Let a pending verification expire now, as if its time were over. Only the sandbox does that.
--
-- KEYS    1 record   2 outbox
-- RETURN  1, or 0 if it is not pending
local key, outbox = unpack(KEYS)

local record = load_record(key)
if not record[CLIENT] or record[STATUS] then return 0 end
redis.call('DEL', key)
notify_followers(key, record)
if record[IS_ANNOUNCED] then
  add_to_outbox(outbox, now_ms() + AFTER_EXPIRY_MS, expiry_event(key, record))
end
return 1
