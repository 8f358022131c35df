"""Redeemed tokens in Redis: one key each, in the slot of its verification, until the token has expired."""

from datetime import datetime, timedelta

from app.store.keys import RecordName
from app.store.scripts import Script, ScriptRunner
from app.store.units import to_ms
from app.verification.errors import TokenExpired, TokenInvalid

REDEEM = Script("tokens", "redeem")

_CLOCK_SKEW = timedelta(minutes=1)  # how far the clock of Redis may be ahead before a token is refused early


class RedisRedemptions:
    """The Redemptions of ``app/verification/ports.py``, on Redis."""

    def __init__(self, runner: ScriptRunner) -> None:
        self._runner = runner

    async def redeem(self, verification_id: str, expires_at: datetime) -> bool:
        """Return whether this is the first redemption of a verification's token.

        Raises:
            TokenInvalid: no verification has such an id.
            TokenExpired: so says the clock of Redis.
            StoreUnavailable: it may have been the first.

        """
        name = RecordName.from_id(verification_id)
        if name is None:
            raise TokenInvalid
        outcome = await self._runner.run(REDEEM, [_key(name)], [to_ms(expires_at + _CLOCK_SKEW)])
        match outcome:
            case b"redeemed":
                return True
            case b"redeemed_before":
                return False
            case b"expired":
                raise TokenExpired
            case _:
                raise AssertionError(outcome)


def _key(name: RecordName) -> str:
    """Name a redemption: one for each verification, so a token that is written in another way is the same token."""
    return f"pv:{{{name.bucket}}}:t:{name.rest}"
