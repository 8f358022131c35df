"""Redeemed tokens in Redis: one key each, in the slot of its verification, until the token has expired."""

from datetime import datetime, timedelta

from app.store.layout import RecordName, to_ms
from app.store.scripts import Script, ScriptRunner
from app.verification.errors import TokenExpired, TokenInvalid

REDEEM = Script("tokens", "redeem", is_durable=True)
_CLOCK_SKEW = timedelta(minutes=1)  # how far Redis' clock may be ahead before a token is refused early


class RedisRedemptions:
    """The ``Redemptions`` of ``app/verification/ports.py``, in Redis."""

    def __init__(self, runner: ScriptRunner) -> None:
        self._runner = runner

    async def redeem(self, verification_id: str, expires_at: datetime) -> bool:
        """Return whether this is the first redemption: one for each verification, however its token is written."""
        name = RecordName.from_id(verification_id)
        if name is None:
            raise TokenInvalid
        key = f"{{{name.bucket}}}:t:{name.rest}"
        outcome: bytes = await self._runner.run(REDEEM, [key], [to_ms(expires_at + _CLOCK_SKEW)])
        if outcome == b"expired":
            raise TokenExpired
        return outcome == b"redeemed"
