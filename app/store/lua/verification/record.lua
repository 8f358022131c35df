-- Records of verifications and phones: their keys, and the notices of their changes. app/store/layout.py lists the fields.

-- A call never goes back to an earlier stage, and stays in the last.
local STAGE = {initiated = 1, unconfirmed = 1, ringing = 2, answered = 3, completed = 4, busy = 4, no_answer = 4, failed = 4}
local LAST_STAGE = 4

-- Return a record, or an empty table, and its bytes.
local function load_record(key)
  local packed = redis.call('GET', key)
  return packed and cmsgpack.unpack(packed) or {}, packed
end

-- Make changes to a record, field → value, or false to delete it, and let it expire at another moment, if one is given.
-- Return its bytes. One without fields is deleted.
local function save_record(key, record, changes, expires)
  for field, value in pairs(changes) do
    record[field] = value or nil
  end
  if not next(record) then
    redis.call('DEL', key)
    return
  end
  local packed = cmsgpack.pack(record)
  if expires then
    redis.call('SET', key, packed, 'PXAT', expires)
  else
    redis.call('SET', key, packed, 'KEEPTTL')
  end
  return packed
end

-- Write a record as it is. A repeated request changes nothing, but what the first one wrote may not have reached the
-- replicas, and only what a connection itself has written can be waited for (app/store/replication.py).
local function write_again(key, record)
  return save_record(key, record, {})
end

local function phone_key_of(key, record)
  return key_beside(key, 'p:' .. record[PHONE_DIGEST])
end

-- Return the channel or the code length of a call.
local function of_call(record, field, number)
  return record[field .. number] or record[field]
end

-- Return the moment at which the code of a call expires, or 0.
local function expires_at(record, number)
  local after = record[EXPIRES_AFTER .. number]
  return after and record[CREATED_AT] + after or 0
end

local function rest_of_id(key)
  return key:match('[^:]+$')
end

local function verification_id(key)
  return 'vrf_' .. key:match('{(%x+)}') .. rest_of_id(key)
end

-- Bind a digest to its verification, which the service cannot do: asked by phone, it does not know the id. SHA-1 is
-- enough, because its input is a keyed digest of 256 bits that cannot be guessed or chosen, and so are 64 bits of it.
local function held_digest(key, code_digest)
  return redis.sha1hex(key .. code_digest):sub(1, 16)
end

-- Make changes to a phone, which lives until `moment` at least.
local function save_phone(phone_key, phone, changes, moment)
  save_record(phone_key, phone, changes, math.max(moment, redis.call('PEXPIRETIME', phone_key)))
end

-- What ASKED_CALL of a phone says of a call.
local function asked_call(key, number)
  return rest_of_id(key) .. ':' .. number
end

-- Return how long until the phone of a record may be called again.
local function until_next_call(key, record, now)
  local phone = load_record(phone_key_of(key, record))
  return math.max(0, (phone[NEXT_CALL] or 0) - now)
end

-- Return an event, as webhooks/take.lua describes it. Its id, with `number`, is never used again.
local function event_of(key, record, event, number, status, call, moment)
  local purpose, reference = record[PURPOSE], record[REFERENCE]
  if reference then
    purpose = purpose .. ':' .. reference:gsub('[%%|]', {['%'] = '%25', ['|'] = '%7C'})
  end
  return table.concat({rest_of_id(key) .. '-' .. number, event, record[CLIENT], purpose, record[CHANNEL],
    record[PHONE], status, call, moment}, '|')
end

local function expiry_event(key, record)
  return event_of(key, record, 'verification.expired', 'expired', 'expired', '', '')
end

-- Schedule the event of a verification that expires, unless it is final.
local function schedule_expiry(key, record, outbox)
  if record[STATUS] or not record[IS_ANNOUNCED] then
    redis.call('ZREM', outbox, expiry_event(key, record))
  else
    add_to_outbox(outbox, redis.call('PEXPIRETIME', key) + AFTER_EXPIRY_MS, expiry_event(key, record))
  end
end

local function add_event(key, record, event, number, status, outbox)
  local last = record[LAST_CALL]
  while last > 0 and not record[CALL_STATUS .. last] do
    last = last - 1 -- it was refunded
  end
  local now = now_ms()
  add_to_outbox(outbox, now, event_of(key, record, event, number, status, record[CALL_STATUS .. last] or '', now))
end

local function notify_followers(key, record)
  if record[IS_FOLLOWED] then
    redis.call('PUBLISH', changes_channel(key), verification_id(key))
  end
end

-- Save changes that callers see, and add `event`, if there is one, to the outbox of a client with a webhook. Return the
-- bytes of the record.
local function publish(key, record, changes, event, outbox)
  local version = (record[VERSION] or 0) + 1
  changes[VERSION] = version
  -- The first event of a verification is that it was created: the call may not have been recorded, or not yet.
  local is_created = outbox and event and not record[IS_ANNOUNCED]
  if is_created then
    changes[IS_ANNOUNCED] = 1
  end
  local packed = save_record(key, record, changes)
  notify_followers(key, record)
  if not outbox then return packed end
  if is_created and event ~= 'verification.created' then
    add_event(key, record, 'verification.created', 0, 'pending', outbox)
  end
  if event then
    add_event(key, record, event, version, record[STATUS] or 'pending', outbox)
  end
  if is_created or changes[STATUS] or changes[CHANNEL] then
    schedule_expiry(key, record, outbox)
  end
  return packed
end

-- Give a verification its final status, beside other changes: none of its codes verifies any more.
local function finish(key, record, changes, status, journal, outbox)
  append(journal, key, record, 'e', status:sub(1, 1))
  changes[STATUS] = status
  for number = 1, record[LAST_CALL] do
    changes[CODE_DIGEST .. number] = false
    changes[HAS_DIALLED .. number] = false
  end
  return publish(key, record, changes, 'verification.' .. status, outbox)
end
