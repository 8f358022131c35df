-- The journal of attempts: a stream for each bucket. An entry is one text, whose id has the time. app/store/attempts.py
-- reads them.
--
--   b<mark><number>, rest of the id, client, purpose, channel, phone without its middle, phone digest, operator of its
--                    range, reference, consent         an attempt begins: the provider is asked for a call
--   s<mark><number>, state, provider's reference, the operator that it reports, provider's unknown status
--   r<mark><number>, kind, reason      the call was not placed, and is refunded
--   w<mark>                            a wrong code
--   e<mark><state>                     the verification ended
--
-- Where the comma stands there is a tab. The mark of a verification is the beginning of the rest of its id, and a state the
-- first letter of its name, because an attempt may cost 200 bytes.

local function journal_entry(kind, key, facts)
  while facts[#facts] == '' do
    facts[#facts] = nil
  end
  return kind .. key:sub(-20, -13) .. table.concat(facts, '\t')
end

-- Begin an attempt, and drop what is older than `kept`.
local function begin_attempt(journal, key, record, number, range_operator, now, kept)
  local phone = record[PHONE]
  local facts = {number, key:sub(-12), record[CLIENT], record[PURPOSE], record[CHANNEL .. number] or record[CHANNEL],
    phone:sub(2, 4) .. phone:sub(-4), record[PHONE_DIGEST], range_operator, record[REFERENCE] or '', record[CONSENT] or ''}
  redis.call('XADD', journal, 'MINID', now - kept, '*', 'e', journal_entry('b', key, facts))
  redis.call('PEXPIRE', journal, kept)
end

-- Append to the attempts of a verification. Where there is no journal, another key is given in its place.
local function append(journal, key, record, kind, ...)
  if journal:sub(-2) == ':j' and not record[IS_TEST] then
    redis.call('XADD', journal, 'NOMKSTREAM', '*', 'e', journal_entry(kind, key, {...}))
  end
end
