"""Daily statistics of all processes: counted in memory, added to Redis once a second."""

import asyncio
import json
import logging
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Self

from app.store.layout import ms
from app.store.scripts import Script, ScriptRunner
from app.verification.channels import Channel
from app.verification.domain_events import (
    CallEnded,
    CallPlaced,
    CallRefused,
    CodeChecked,
    DomainEvent,
    LimitHit,
    VerificationCanceled,
    VerificationStarted,
)
from app.verification.errors import StoreUnavailable
from app.verification.model import CallStatus, Status

log = logging.getLogger(__name__)

ADD, READ = (Script("stats", name) for name in ("add", "read"))

_SLOT = "{stats}"
_KEEP_DAY = timedelta(days=8)
_BATCH_REMEMBERED = timedelta(hours=1)  # how long a batch whose reply was lost can be repeated without harm
_FLUSHED_EVERY = timedelta(seconds=1)
_FIRST_DAY = date(1970, 1, 1)
_KOPECKS = 100

PlacedCalls = Mapping[tuple[Channel, CallStatus], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DayStats:
    """The counts of one day (UTC). Mappings have no entries for zeros.

    ``placed`` counts ``initiated`` and ``unconfirmed`` calls, ``ended`` the final statuses; ``refused`` is by
    ``REFUSAL_KINDS``. ``wrong`` counts codes, with those that locked a verification.
    """

    day: date
    started: Mapping[Channel, int] = field(default_factory=dict)
    placed: PlacedCalls = field(default_factory=dict)
    ended: PlacedCalls = field(default_factory=dict)
    refused: Mapping[tuple[Channel, str], int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    verified: int = 0
    wrong: int = 0
    locked: int = 0
    canceled: int = 0
    spend_rub: Decimal = Decimal(0)

    @property
    def calls(self) -> int:
        """Calls that were placed, or may have been."""
        return sum(self.placed.values())

    @property
    def conversion(self) -> float | None:
        """The share of started verifications that were verified; one may start on a day and be verified on the next."""
        started = sum(self.started.values())
        return self.verified / started if started else None

    @classmethod
    def of(cls, day: date, counts: Mapping[str, int]) -> Self:
        """Read the counts of a day; those of another version of the service are skipped."""
        found: dict[str, Any] = {name: {} for name in ("started", "placed", "ended", "refused", "limits")}
        for name, count in counts.items():
            match name.split(":"):
                case ["started", channel] if channel in _CHANNELS:
                    found["started"][Channel(channel)] = count
                case ["placed" | "ended" as group, channel, status] if channel in _CHANNELS and status in _STATUSES:
                    found[group][Channel(channel), CallStatus(status)] = count
                case ["refused", channel, kind] if channel in _CHANNELS:
                    found["refused"][Channel(channel), kind] = count
                case ["limit", limit]:
                    found["limits"][limit] = count
        found |= {name: counts.get(name, 0) for name in ("verified", "wrong", "locked", "canceled")}
        return cls(day=day, spend_rub=Decimal(counts.get("kopecks", 0)) / _KOPECKS, **found)


_CHANNELS, _STATUSES = frozenset(map(str, Channel)), frozenset(map(str, CallStatus))


class RedisStats:
    """Counts domain events (``observe`` is a ``Publish``), and reads the counts of all processes.

    The counts of the second before a process is killed are lost. A batch that could not be written is kept; its number
    prevents that it is added twice.
    """

    def __init__(self, runner: ScriptRunner, *, call_price_rub: Decimal) -> None:
        self._runner = runner
        self._price = int(call_price_rub * _KOPECKS)
        self._counts: Counter[str] = Counter()
        self._batch: Counter[str] = Counter()  # under way, or not known to have arrived
        self._batch_number = 0
        self._key = f"{_SLOT}:w:{secrets.token_hex(8)}"
        self._flushing = asyncio.Lock()

    def observe(self, event: DomainEvent) -> None:
        """Count an event."""
        match event:
            case CodeChecked(status):
                if status is not Status.PENDING:
                    self._counts[status] += 1
                if status is not Status.VERIFIED:
                    self._counts["wrong"] += 1
            case VerificationStarted(channel):
                self._counts[f"started:{channel}"] += 1
            case CallPlaced(channel, status):
                self._counts[f"placed:{channel}:{status}"] += 1
                self._counts["kopecks"] += self._price
            case CallEnded(channel, status):
                self._counts[f"ended:{channel}:{status}"] += 1
            case CallRefused(channel, error):
                self._counts[f"refused:{channel}:{error.kind}"] += 1
            case LimitHit(name):
                self._counts[f"limit:{name}"] += 1
            case VerificationCanceled():
                self._counts["canceled"] += 1

    async def flush(self) -> timedelta:
        """Add the counts to those in Redis, and return when to do so again. Raises StoreUnavailable: they are kept."""
        async with self._flushing:
            if not self._batch:
                if not self._counts:
                    return _FLUSHED_EVERY
                self._batch, self._counts = self._counts, Counter()
                self._batch_number += 1
            lifetimes, counts = (ms(_BATCH_REMEMBERED), ms(_KEEP_DAY)), json.dumps(self._batch)
            await self._runner.run(ADD, [self._key], [self._batch_number, *lifetimes, counts])
            self._batch = Counter()
        return _FLUSHED_EVERY

    async def aclose(self) -> None:
        """Flush the rest, if Redis is available."""
        try:
            await self.flush()  # a batch that waits, if one does
            await self.flush()
        except StoreUnavailable:
            log.warning("stats.lost", extra={"events": (self._batch + self._counts).total()})

    async def read(self, day: date | None = None) -> DayStats:
        """Return one of the last eight days, or today by Redis' clock. Raises StoreUnavailable."""
        number = "" if day is None else (day - _FIRST_DAY).days
        found, *flat = await self._runner.run(READ, [self._key], [number])
        counts = {name.decode(): int(count) for name, count in zip(flat[::2], flat[1::2], strict=True)}
        return DayStats.of(_FIRST_DAY + timedelta(days=int(found)), counts)

    async def gauges(self) -> Mapping[str, float | Decimal]:
        """Return today's calls and what they cost, for the metrics. Raises StoreUnavailable."""
        today = await self.read()
        return {"calls_today": today.calls, "spend_today_rub": today.spend_rub}
