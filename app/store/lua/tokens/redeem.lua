-- Redeem the token of a verification: once, whoever asks and however many at the same moment.
--
-- The key outlives the token, and a token that comes later than the key could last is refused. So no clock that is
-- wrong, here or in the service, makes a second redemption possible; at worst it makes the first one impossible.
--
-- KEYS    1 redemption
-- ARGV    1 until when to remember it, in ms
-- RETURN  {'redeemed'}
--         {'redeemed_before' | 'expired'}

if tonumber(ARGV[1]) <= now_ms() then
  return {'expired'}
elseif redis.call('SET', KEYS[1], '1', 'NX', 'PXAT', ARGV[1]) then
  return {'redeemed'}
end
return {'redeemed_before'}
