"""Whether the account at the provider can pay for a call, as far as is known here without asking."""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from app.verification.errors import BalanceTooLow, ProviderError
from app.verification.ports import ProviderAccounts

log = logging.getLogger(__name__)

# Every worker looks at the board this often. Together with the interval of reading and the time that a reading takes
# (10 s), all workers know of a top-up within a minute: 40 + 5 + 10 + 5 s.
_UNTIL_NEXT_LOOK = timedelta(seconds=5)
_INTERVAL = timedelta(seconds=40)
_BELIEVED_FOR = timedelta(minutes=5)


class BalanceLevel(StrEnum):
    """What is to be thought of a balance. ``low``: no call is placed; ``unknown`` is not low."""

    OK = "ok"
    WARNING = "warning"
    LOW = "low"
    UNKNOWN = "unknown"


_EVENTS = {
    BalanceLevel.OK: "balance.recovered",
    BalanceLevel.WARNING: "balance.warning",
    BalanceLevel.LOW: "balance.low",
    BalanceLevel.UNKNOWN: "balance.unknown",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedBalance:
    """What stands on the board: the last balance in RUB and its age, if any, and whether to read it anew now."""

    rub: Decimal | None = None
    age: timedelta = timedelta(0)
    is_reader: bool


class BalanceCache(Protocol):
    """What the workers share, so that one of them reads for all. Both methods raise StoreUnavailable."""

    async def look(self, interval: timedelta) -> CachedBalance:
        """Return what is known; one worker in each ``interval`` is told to read the balance.

        If it does not ``post`` one within a lease, another worker is told.
        """
        ...

    async def post(self, rub: Decimal) -> None:
        """Write down a balance that was just read."""
        ...


class Balance:
    """The last known balance, and what is to be thought of it now. Below ``minimum`` no call is placed.

    A reading is believed for five minutes. ``clock`` counts seconds and is never set back (``time.monotonic``).
    """

    def __init__(self, *, minimum: Decimal, warning: Decimal, clock: Callable[[], float]) -> None:
        self._minimum = minimum
        self._warning = warning
        self._clock = clock
        self._last: tuple[Decimal, float] | None = None

    @property
    def rub(self) -> Decimal | None:
        """The balance in RUB, or none if it is unknown."""
        if self._last is None:
            return None
        rub, read_at = self._last
        return rub if self._clock() - read_at < _BELIEVED_FOR.total_seconds() else None

    @property
    def level(self) -> BalanceLevel:
        """What is to be thought of it."""
        rub = self.rub
        if rub is None:
            return BalanceLevel.UNKNOWN
        if rub < self._minimum:
            return BalanceLevel.LOW
        return BalanceLevel.WARNING if rub < self._warning else BalanceLevel.OK

    def require_enough(self) -> None:
        """Return unless the balance is known to be too low for a call. Raises BalanceTooLow."""
        if self.level is BalanceLevel.LOW:
            raise BalanceTooLow

    async def gauges(self) -> Mapping[str, Decimal | None]:
        """Return the balance and its thresholds in RUB, for the metrics."""
        return {"balance_rub": self.rub, "balance_minimum_rub": self._minimum, "balance_warning_rub": self._warning}

    def note(self, rub: Decimal, age: timedelta = timedelta(0)) -> None:
        """Take down a balance that was read ``age`` ago."""
        self._last = rub, self._clock() - age.total_seconds()


class BalancePoller:
    """Keeps ``balance`` up to date: one worker of a deployment asks the provider, once in each ``interval``."""

    def __init__(
        self,
        accounts: ProviderAccounts,
        board: BalanceCache,
        *,
        minimum: Decimal,
        warning: Decimal,
        clock: Callable[[], float],
        interval: timedelta = _INTERVAL,
    ) -> None:
        self.balance = Balance(minimum=minimum, warning=warning, clock=clock)
        self._accounts = accounts
        self._board = board
        self._interval = interval
        self._told: BalanceLevel | None = None  # none: nothing was known yet, and nobody missed it

    async def step(self) -> timedelta:
        """Look at the board, and read the balance if it is for this worker to do; tell how long to wait until the next.

        A reading that fails changes nothing: the one before is believed until it is too old.

        Raises:
            StoreUnavailable: the other workers could not be asked, or not be told.

        """
        try:
            posted = await self._board.look(self._interval)
            if posted.rub is not None:
                self.balance.note(posted.rub, posted.age)
            if posted.is_reader:
                await self._read()
        finally:
            self._tell()
        return _UNTIL_NEXT_LOOK * random.uniform(0.8, 1)  # noqa: S311 - spreads the workers, no secret

    async def _read(self) -> None:
        try:
            rub = await self._accounts.get_balance()
        except ProviderError as error:
            log.warning("balance.not_read", extra={"error": repr(error)})
            self._told = self._told or BalanceLevel.OK  # from here on it is missed
            return
        self.balance.note(rub)
        await self._board.post(rub)

    def _tell(self) -> None:
        """Log a change of level; the first one only if it is none to be glad of."""
        level, before = self.balance.level, self._told
        if level is before or (before is None and level is BalanceLevel.UNKNOWN):
            return
        self._told = level
        if before is None and level is BalanceLevel.OK:
            return
        rub = self.balance.rub
        facts = {} if rub is None else {"rub": str(rub)}
        log.log(logging.INFO if level is BalanceLevel.OK else logging.WARNING, _EVENTS[level], extra=facts)
