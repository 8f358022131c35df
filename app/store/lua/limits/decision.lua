-- The decision of limits on an event, and of the fraud guard with them.
--
-- Rules     in MessagePack: {{of the fraud guard: for how long a call counts, length of a bucket, maturity of a call, fewest
--           calls to be judged by, lowest conversion, first and longest block, for how long after a block its level is
--           remembered}, {{count, period, 'block' or 'report' if the fraud guard judges its subject, or ''} of each limit}}
-- Decision  {now,
--            {{number of a limit, 1 if this has blocked its subject, since, ends, level, calls, successes} of each that is
--              blocked or reported},
--            how many are left of each limit, and ms until it has room, or 0 …}

-- Count an event in all limits, or without a token in none, if all have room and the fraud guard has blocked none of their
-- subjects; it judges in any case. `keys` are those of the limits, then of the blocks of those that it judges. Return the
-- decision, and whether there is room.
local function acquire(keys, rules, token, now)
  local guard_rules, limit_rules = unpack(cmsgpack.unpack(rules))
  local window, bucket_length, memory = guard_rules[1], guard_rules[2], guard_rules[8]
  local texts, limits, has_room, next_block, verdicts = redis.call('MGET', unpack(keys)), {}, true, #limit_rules + 1, {}
  local decision = {now, verdicts}
  for i, rule in ipairs(limit_rules) do
    local count, period, action = unpack(rule)
    local limit = read_limit(texts[i])
    slide(limit, now, period)
    local wait = wait_for_room(limit, now, count, period)
    has_room = has_room and wait == 0
    decision[2 * i + 1], decision[2 * i + 2] = count - limit.total, wait
    if action ~= '' then
      local block, is_new = judge(limit, texts[next_block], now, guard_rules)
      if block then
        has_room = has_room and action ~= 'block'
        verdicts[#verdicts + 1] = {i, is_new and 1 or 0, unpack(block)}
      end
      if is_new then
        limit.block, limit.block_key = block, keys[next_block]
      end
      next_block = next_block + 1
    end
    limits[i] = limit
  end

  local is_counted = has_room and token ~= ''
  for i, limit in ipairs(limits) do
    local count, period, action = unpack(limit_rules[i])
    if limit.block then
      redis.call('SET', limit.block_key, cjson.encode(limit.block), 'PX', limit.block[2] - now + memory)
      save_limit(keys[i], limit)
    end
    if is_counted then
      count_event(limit, now, count, period, token)
      decision[2 * i + 1] = decision[2 * i + 1] - 1
      if action ~= '' then
        count_call(limit, now, bucket_length)
      end
      save_limit(keys[i], limit, limit.calls == '' and period or math.max(period, window))
    end
  end
  return decision, has_room
end

-- Refund an event in all limits. In one that counts no tokens it is found by its moment, if that is given: a second time
-- this would refund another event.
local function refund(keys, rules, token, moment)
  local _, limit_rules = unpack(cmsgpack.unpack(rules))
  local texts = redis.call('MGET', unpack(keys))
  for i, rule in ipairs(limit_rules) do
    local _, period, action = unpack(rule)
    local limit = read_limit(texts[i])
    local total, calls = limit.total, limit.calls
    remove_event(limit, period, token, moment)
    if moment and action ~= '' then
      refund_call(limit, moment)
    end
    if limit.total < total or limit.calls ~= calls then
      save_limit(keys[i], limit)
    end
  end
end
