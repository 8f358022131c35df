"""The balance cache in Redis: one worker of the deployment writes it, and all others read it."""

from datetime import timedelta
from decimal import Decimal

from app.store.layout import ms
from app.store.scripts import Script, ScriptRunner
from app.verification.provider_account import CachedBalance

READ, WRITE = (Script("provider_account", name) for name in ("read", "write"))

_KEY = "{balance}"
_MEMORY = timedelta(hours=1)  # longer than a reading is valid


class RedisBalanceCache:
    """The ``BalanceCache`` of ``app/verification/provider_account.py``, in Redis.

    ``lease`` is how long a worker has for reading the balance before another one is asked to: longer than it can take.
    """

    def __init__(self, runner: ScriptRunner, *, lease: timedelta = timedelta(seconds=30)) -> None:
        self._runner = runner
        self._lease = lease

    async def read(self, interval: timedelta) -> CachedBalance:
        """Return the cached balance, and make one worker in each ``interval`` the reader."""
        arguments = [ms(interval), ms(self._lease), ms(_MEMORY)]
        rub, age, is_reader = await self._runner.run(READ, [_KEY], arguments)
        if not rub:
            return CachedBalance(is_reader=bool(is_reader))
        return CachedBalance(rub=Decimal(rub.decode()), age=timedelta(milliseconds=int(age)), is_reader=bool(is_reader))

    async def write(self, rub: Decimal) -> Decimal | None:
        """Store a balance that was just read, and return the one before."""
        before = await self._runner.run(WRITE, [_KEY], [str(rub), ms(_MEMORY)])
        return Decimal(before.decode()) if before else None
