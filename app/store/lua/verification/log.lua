-- Logs in a field of a phone: exactly how many calls or failed checks a sliding window has.

-- Return the entries of a log in the last `period`, oldest first.
local function recent(log, now, period)
  local entries = {}
  for moment, address in (log or ''):gmatch('(%d+)@?(%x*)') do
    if moment + period > now then
      entries[#entries + 1] = {at = tonumber(moment), address = address}
    end
  end
  return entries
end

local function write_log(entries)
  local texts = {}
  for i, entry in ipairs(entries) do
    texts[i] = entry.at .. (entry.address ~= '' and '@' .. entry.address or '')
  end
  return table.concat(texts, ',')
end

-- Return how many entries there are in the last `period`, of one address if it is given, and how long until there is
-- room for another among `count`.
local function used(entries, now, count, period, address)
  local inside, wait = 0, 0
  for i = #entries, 1, -1 do
    local entry = entries[i]
    if entry.at + period <= now then
      break
    elseif not address or entry.address == address then
      inside = inside + 1
      wait = inside == count and entry.at + period - now or wait
    end
  end
  return inside, wait
end
