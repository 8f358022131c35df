-- The stream of webhook events, which take.lua describes.

local EVENTS_KEPT_MS = 3 * 24 * 3600 * 1000 -- since the last one

-- Add an event; beyond about 100,000 the oldest are dropped.
local function add_to_stream(stream, event)
  local fields = {}
  for name, value in pairs(event) do
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  redis.call('XADD', stream, 'MAXLEN', '~', 100000, '*', unpack(fields))
  redis.call('PEXPIRE', stream, EVENTS_KEPT_MS)
end
