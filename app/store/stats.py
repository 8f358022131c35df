"""What happened on each day, over all processes and machines: counted here, written to Redis once a second."""

import asyncio
import json
import logging
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Self

from app.store.keys import name_limit
from app.store.limits import ROOM
from app.store.scripts import Argument, Script, ScriptRunner
from app.store.units import ms
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
from app.verification.policy import Allowance
from app.verification.refusals import refusal_kind

log = logging.getLogger(__name__)

ADD, READ = (Script("stats", name) for name in ("add", "read"))

_SLOT = "pv:{stats}"
_KEEP_DAY = timedelta(days=8)
_KEEP_SERIAL = timedelta(hours=1)  # for as long a batch whose reply was lost can be repeated without harm
_FLUSHED_EVERY = timedelta(seconds=1)
_FIRST_DAY = date(1970, 1, 1)
_KOPECKS = 100

PlacedCalls = Mapping[tuple[Channel, CallStatus], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DayStats:
    """What happened on one day (UTC). A mapping has no entry for what did not happen.

    ``placed`` tells ``initiated`` and ``unconfirmed`` calls, ``ended`` the final states; ``refused`` is by one of
    ``REFUSAL_KINDS``. ``wrong`` counts codes, those that locked a
    verification among them.
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
        """The share of verifications begun that were verified; none where none was begun.

        One that was begun before midnight and verified after it counts on both days, once.
        """
        begun = sum(self.started.values())
        return self.verified / begun if begun else None

    @classmethod
    def of(cls, day: date, counts: Mapping[str, int]) -> Self:
        """Read the counters of a day; what another version of the service counted is passed over."""
        grouped: dict[str, dict[str, int]] = {}
        for name, count in counts.items():
            group, _, rest = name.partition(":")
            grouped.setdefault(group, {})[rest] = count
        plain = {name: counts.get(name, 0) for name in ("verified", "wrong", "locked", "canceled")}
        return cls(
            day=day,
            started={Channel(name): count for name, count in grouped.get("started", {}).items() if name in _CHANNELS},
            placed=dict(_calls(grouped.get("placed", {}))),
            ended=dict(_calls(grouped.get("ended", {}))),
            refused=dict(_refusals(grouped.get("refused", {}))),
            limits=grouped.get("limit", {}),
            spend_rub=Decimal(counts.get("kopecks", 0)) / _KOPECKS,
            **plain,
        )


_CHANNELS, _STATUSES = frozenset(map(str, Channel)), frozenset(map(str, CallStatus))


def _calls(counts: Mapping[str, int]) -> Iterator[tuple[tuple[Channel, CallStatus], int]]:
    for name, count in counts.items():
        channel, _, status = name.partition(":")
        if channel in _CHANNELS and status in _STATUSES:
            yield (Channel(channel), CallStatus(status)), count


def _refusals(counts: Mapping[str, int]) -> Iterator[tuple[tuple[Channel, str], int]]:
    for name, count in counts.items():
        channel, _, kind = name.partition(":")
        if channel in _CHANNELS:
            yield (Channel(channel), kind), count


class RedisStats:
    """Counts what the domain tells (``observe`` is an ``Observe``), and reads what all processes have counted.

    What a process has counted in the second before it is killed is lost. A batch that could not be written is kept,
    and is written once, however often it is tried: its serial tells.
    """

    def __init__(self, runner: ScriptRunner, *, call_price_rub: Decimal) -> None:
        self._runner = runner
        self._price = int(call_price_rub * _KOPECKS)
        self._counts: Counter[str] = Counter()
        self._batch: Counter[str] = Counter()  # under way, or not known to have arrived
        self._serial = 0
        self._key = f"{_SLOT}:w:{secrets.token_hex(8)}"
        self._flushing = asyncio.Lock()

    def observe(self, event: DomainEvent) -> None:
        """Count something that happened."""
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
                self._counts[f"refused:{channel}:{refusal_kind(error)}"] += 1
            case LimitHit(name):
                self._counts[f"limit:{name}"] += 1
            case VerificationCanceled():
                self._counts["canceled"] += 1

    async def step(self) -> timedelta:
        """Write what was counted; tells when to do so again. Raises StoreUnavailable: it is kept."""
        await self.flush()
        return _FLUSHED_EVERY

    async def flush(self) -> None:
        """Write what was counted, in one step. Raises StoreUnavailable: it is kept for the next time."""
        async with self._flushing:
            if not self._batch:
                if not self._counts:
                    return
                self._batch, self._counts = self._counts, Counter()
                self._serial += 1
            arguments: list[Argument] = [self._serial, ms(_KEEP_SERIAL), ms(_KEEP_DAY), json.dumps(self._batch)]
            await self._runner.run(ADD, [self._key], arguments)
            self._batch = Counter()

    async def aclose(self) -> None:
        """Write what is left, if that can be done."""
        try:
            await self.flush()  # a batch that waits, if one does
            await self.flush()
        except StoreUnavailable:
            log.warning("stats.lost", extra={"events": (self._batch + self._counts).total()})

    async def read(self, day: date | None = None) -> DayStats:
        """Return what happened on one of the last eight days; today, by Redis' clock, if none is named.

        Raises StoreUnavailable.
        """
        number = "" if day is None else (day - _FIRST_DAY).days
        told, *flat = await self._runner.run(READ, [self._key], [number])
        counts = {name.decode(): int(count) for name, count in zip(flat[::2], flat[1::2], strict=True)}
        return DayStats.of(_FIRST_DAY + timedelta(days=int(told)), counts)

    async def used(self, allowance: Allowance, *, key: bytes) -> int:
        """Return how much of a limit is used; ``key`` is that of the limits. Raises StoreUnavailable."""
        limit = allowance.limit
        used, _ = await self._runner.run(ROOM, [name_limit(key, allowance)], [limit.count, ms(limit.period)])
        return int(used)
