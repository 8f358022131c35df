-- Logs in a field of a phone: exactly how many calls or failed checks a sliding window has. An entry is the moment of a
-- call, or {moment, address digest or ''} of a failed check; the oldest is the first.

local function moment_of(entry)
  return type(entry) == 'table' and entry[1] or entry
end

-- Drop the entries of a log, or of none, that are not of the last `period`, and return it.
local function recent(log, now, period)
  log = log or {}
  while log[1] and moment_of(log[1]) + period <= now do
    table.remove(log, 1)
  end
  return log
end

-- Return how many entries there are in the last `period`, of one address if it is given, and how long until there is
-- room for another among `count`.
local function used(log, now, count, period, address)
  local inside, wait = 0, 0
  for i = #log, 1, -1 do
    local entry = log[i]
    local ends = moment_of(entry) + period
    if ends <= now then
      break
    elseif not address or entry[2] == address then
      inside = inside + 1
      wait = inside == count and ends - now or wait
    end
  end
  return inside, wait
end
