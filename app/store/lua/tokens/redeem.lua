-- Redeem the token of a verification, once.
--
-- The key outlives the token, and a token that comes after the key could last is refused. So a wrong clock, here or in
-- the service, never makes a second redemption possible; at worst it prevents the first.
--
-- KEYS    1 redemption
-- ARGV    1 moment until which it is remembered
-- RETURN  'redeemed' | 'redeemed_before' | 'expired'
local key, expires = KEYS[1], ARGV[1]

if tonumber(expires) <= now_ms() then return 'expired' end
return redis.call('SET', key, '1', 'NX', 'PXAT', expires) and 'redeemed' or 'redeemed_before'
