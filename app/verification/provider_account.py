"""The account at the provider: its names, its balance, and whether that pays for a call."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from app.verification.domain_events import BalanceChanged, Publish
from app.verification.errors import BalanceTooLow, ProviderError
from app.verification.model import ProviderAccount
from app.verification.ports import ProviderAccounts

log = logging.getLogger(__name__)

# Every worker reads the cache this often. Together with the interval of reading and the time that a reading takes
# (10 s), all workers know of a top-up within a minute: 40 + 5 + 10 + 5 s.
_CACHE_INTERVAL = timedelta(seconds=5)
_INTERVAL = timedelta(seconds=40)
_VALID_FOR = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class ProviderOverview:
    """The accounts at the provider and the balance in RUB, if it could be read."""

    accounts: Sequence[ProviderAccount]
    balance_rub: Decimal | None


class AccountReader:
    """Reads the provider's accounts and balance. Concurrent reads share one answer, and leave connections to calls."""

    def __init__(self, accounts: ProviderAccounts) -> None:
        self._accounts = accounts
        self._reading: asyncio.Task[ProviderOverview] | None = None

    async def read(self) -> ProviderOverview:
        """Read both. Raises ProviderError if the accounts cannot be read; an unreadable balance is None."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(self._reading)

    async def _read(self) -> ProviderOverview:
        accounts = await self._accounts.get_account()
        balance = None
        try:
            balance = await self._accounts.get_balance()
        except ProviderError as error:
            log.warning("provider.balance_unknown", extra={"kind": error.kind, "reason": error.reason})
        return ProviderOverview(accounts, balance)


class BalanceLevel(StrEnum):
    """``low``: no call is placed. ``unknown`` is not low."""

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
    """The last balance in RUB and its age, if any; ``is_reader`` if this worker is to read it from the provider now."""

    rub: Decimal | None = None
    age: timedelta = timedelta(0)
    is_reader: bool


class BalanceCache(Protocol):
    """Shares the balance between workers, so that one of them reads for all. Both methods raise StoreUnavailable."""

    async def read(self, interval: timedelta) -> CachedBalance:
        """Return the cached balance, and make one worker in each ``interval`` the reader.

        If it does not ``write`` a balance within a lease, another worker becomes the reader.
        """

    async def write(self, rub: Decimal) -> Decimal | None:
        """Store a balance that was just read, and return the one before, if it is known."""


@dataclass(slots=True, kw_only=True)
class Balance:
    """The last known balance, as far as it is known without asking. Below ``minimum`` no call is placed.

    A reading is valid for five minutes. ``clock`` counts seconds and never goes back (``time.monotonic``).
    """

    minimum: Decimal
    warning: Decimal
    clock: Callable[[], float]
    _last: tuple[Decimal, float] | None = field(default=None, init=False)

    @property
    def rub(self) -> Decimal | None:
        """The balance in RUB, or none if it is unknown."""
        if self._last is None:
            return None
        rub, read_at = self._last
        return rub if self.clock() - read_at < _VALID_FOR.total_seconds() else None

    @property
    def level(self) -> BalanceLevel:
        """The level at this moment."""
        rub = self.rub
        if rub is None:
            return BalanceLevel.UNKNOWN
        if rub < self.minimum:
            return BalanceLevel.LOW
        return BalanceLevel.WARNING if rub < self.warning else BalanceLevel.OK

    def require_enough(self) -> None:
        """Return unless the balance is known to be too low for a call. Raises BalanceTooLow."""
        if self.level is BalanceLevel.LOW:
            raise BalanceTooLow

    async def gauges(self) -> Mapping[str, Decimal | None]:
        """Return the balance and its thresholds in RUB, for the metrics."""
        return {"balance_rub": self.rub, "balance_minimum_rub": self.minimum, "balance_warning_rub": self.warning}

    def note(self, rub: Decimal, age: timedelta = timedelta(0)) -> None:
        """Set a balance that was read ``age`` ago."""
        self._last = rub, self.clock() - age.total_seconds()


class BalancePoller:
    """Keeps ``balance`` up to date: one worker of a deployment asks the provider, once in 40 seconds."""

    def __init__(self, accounts: ProviderAccounts, cache: BalanceCache, balance: Balance, publish: Publish) -> None:
        self.balance = balance
        self._publish = publish
        self._accounts = accounts
        self._cache = cache
        self._logged: BalanceLevel | None = None  # none: nothing was known yet

    async def step(self) -> timedelta:
        """Read the cache, and the balance if it is this worker's turn; return how long to wait until the next step.

        A reading that fails changes nothing: the one before stays valid until it is too old. Raises StoreUnavailable.
        """
        try:
            cached = await self._cache.read(_INTERVAL)
            if cached.rub is not None:
                self.balance.note(cached.rub, cached.age)
            if cached.is_reader:
                rub = await self._accounts.get_balance()
                self.balance.note(rub)
                before = await self._cache.write(rub)
                if before is not None and rub != before:
                    self._publish(BalanceChanged(rub - before))
        except ProviderError as error:
            log.warning("balance.not_read", extra={"kind": error.kind, "reason": error.reason})
            self._logged = self._logged or BalanceLevel.OK  # from here on an unknown balance is logged
        finally:
            self._log_level()
        return _CACHE_INTERVAL * random.uniform(0.8, 1)  # noqa: S311 - spreads the workers, no secret

    def _log_level(self) -> None:
        """Log a change of level; of the first one, only a warning or a low one."""
        level, before = self.balance.level, self._logged
        if level is before or (before is None and level is BalanceLevel.UNKNOWN):
            return
        self._logged = level
        if before is None and level is BalanceLevel.OK:
            return
        rub = self.balance.rub
        fields = {} if rub is None else {"rub": str(rub)}
        log.log(logging.INFO if level is BalanceLevel.OK else logging.WARNING, _EVENTS[level], extra=fields)
