-- Webhook events, which take.lua describes.

local EVENTS_KEPT_MS = 3 * 24 * 3600 * 1000 -- since a bucket last got one
local AFTER_EXPIRY_MS = 1 -- in the millisecond of its expiry a verification can still be canceled

-- Add an event that is to be delivered once it is due.
local function add_to_outbox(outbox, due, event)
  redis.call('ZADD', outbox, due, event)
  redis.call('PEXPIRE', outbox, EVENTS_KEPT_MS)
end

-- Return the phone of an event, in digits.
local function phone_of_event(event)
  return event:match('^' .. ('[^|]*|'):rep(5) .. '(%d*)|')
end
