#!lua flags=allow-oom
-- Put dead letters back into the stream, with all their attempts before them.
--
-- KEYS    1 stream   2 dead   3 letters
-- ARGV    1 event, or '' for the oldest   2 how many at most   3 only those given up by this moment, or '' for now
--         4 ms that letters are kept
-- RETURN  {how many were taken off the list, the moment}

local moment = ARGV[3] ~= '' and ARGV[3] or int(now_ms())
local events = {ARGV[1]}
if ARGV[1] == '' then
  events = redis.call('ZRANGE', KEYS[2], int(now_ms() - ARGV[4]), moment, 'BYSCORE', 'LIMIT', 0, ARGV[2])
end

local count = 0
for _, event in ipairs(events) do
  local letter = redis.call('HGET', KEYS[3], event)
  if redis.call('ZREM', KEYS[2], event) == 1 then
    redis.call('HDEL', KEYS[3], event)
    local fields = letter and cjson.decode(letter) or {}
    for i = 1, #fields, 2 do
      if fields[i] == 'attempts' then
        fields[i + 1] = '0'
      end
    end
    if letter then
      redis.call('XADD', KEYS[1], '*', unpack(fields))
      redis.call('PEXPIRE', KEYS[1], EVENTS_KEPT_MS)
    end
    count = count + 1
  end
end
return {count, moment}
