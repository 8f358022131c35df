"""Statistics of all processes: counted in memory, added to Redis once a second, by the hour and by the day."""

import asyncio
import json
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal

from app.store.layout import ms
from app.store.scripts import Script, ScriptRunner
from app.verification.attempts import Attempt
from app.verification.channels import Channel
from app.verification.domain_events import DomainEvent, Segment
from app.verification.errors import StoreUnavailable
from app.verification.model import CallStatus
from app.verification.stats import (
    DAYS_KEPT,
    HOURS_KEPT,
    CallCounts,
    CallPrices,
    Dimension,
    InvalidPeriod,
    Period,
    Stats,
    StatsCounter,
    counted_events,
    hour_at,
    to_rub,
)

log = logging.getLogger(__name__)

ADD, READ = (Script("stats", name) for name in ("add", "read"))

# How the counts of a segment are stored. A new one is appended: what was stored before has fewer.
CALL_COUNTS = (
    "asked",
    "started",
    CallStatus.INITIATED,
    CallStatus.UNCONFIRMED,
    CallStatus.COMPLETED,
    CallStatus.BUSY,
    CallStatus.NO_ANSWER,
    CallStatus.FAILED,
    "verified",
    "cost",
)

_SLOT = "{stats}"
_BATCH_REMEMBERED = timedelta(hours=1)  # how long a batch whose reply was lost can be repeated without harm
_FLUSHED_EVERY = timedelta(seconds=1)
_READ_AT_ONCE = 24  # hours or days: so that no other script waits long
_MOST_CLIENTS = 50  # in the metrics: those that spend most
_DAY = timedelta(days=1)
_FIRST_DAY = date(1970, 1, 1)
_CHANNELS = frozenset(map(str, Channel))


class RedisStats:
    """Counts domain events (``observe`` is a ``Publish``), and reads the counts of all processes.

    Days are those of ``zone``. The counts of the second before a process is killed are lost. A batch that could not be
    written is kept; its number prevents that it is added twice. ``count_calls`` gets each batch for the metrics.
    """

    def __init__(
        self,
        runner: ScriptRunner,
        *,
        prices: CallPrices,
        zone: tzinfo,
        count_calls: Callable[[Mapping[Segment, CallCounts]], None],
    ) -> None:
        self._runner = runner
        self._count_calls = count_calls
        self._prices = prices
        self.zone = zone
        self._counter = StatsCounter(prices)
        self._batch: StatsCounter | None = None  # under way, or not known to have arrived
        self._batch_number = 0
        self._key = f"{_SLOT}:w:{secrets.token_hex(8)}"
        self._flushing = asyncio.Lock()

    def observe(self, event: DomainEvent) -> None:
        """Count an event."""
        self._counter.observe(event)

    async def flush(self) -> timedelta:
        """Add the counts to those in Redis, and return when to do so again. Raises StoreUnavailable: they are kept."""
        async with self._flushing:
            if not self._batch:
                if not self._counter.events:
                    return _FLUSHED_EVERY
                self._batch, self._counter = self._counter, StatsCounter(self._prices)
                self._batch_number += 1
                self._count_calls(self._batch.calls)
            # Longer than a day counts as kept, because a part of it is older than the rest.
            kept = (ms(_BATCH_REMEMBERED), ms((HOURS_KEPT + 1) * _DAY), ms((DAYS_KEPT + 1) * _DAY))
            ahead = datetime.now(self.zone).utcoffset() or timedelta()
            await self._runner.run(ADD, [self._key], [self._batch_number, *kept, ms(ahead), _pack(self._batch)])
            self._batch = None
        return _FLUSHED_EVERY

    async def aclose(self) -> None:
        """Flush the rest, if Redis is available."""
        try:
            await self.flush()  # a batch that waits, if one does
            await self.flush()
        except StoreUnavailable:
            waiting = self._batch.events if self._batch else 0
            log.warning("stats.lost", extra={"events": waiting + self._counter.events})

    async def read(self, period: Period | None = None, by: Sequence[Dimension] = ()) -> Stats:
        """Return the statistics of a period, or of today, grouped by some dimensions.

        Raises:
            InvalidPeriod: it begins too early.
            StoreUnavailable: Redis did not answer in time.

        """
        period = period or Period.choose(datetime.now(self.zone))
        # Hours add up to days in any time zone, but are not kept for as long.
        by_day = period.zone == self.zone and Dimension.HOUR not in by
        age = (datetime.now(period.zone).date() - period.first).days
        if age >= DAYS_KEPT:
            raise InvalidPeriod("from", f"only the last {DAYS_KEPT} days are kept")
        if not by_day and age > HOURS_KEPT:
            raise InvalidPeriod("from", f"hours and other time zones than {self.zone} go back {HOURS_KEPT} days")
        stats = Stats(period=period, by=by)
        if by_day:
            first = (period.first - _FIRST_DAY).days
            async for number, counts in self._each("d", range(first, first + period.days)):
                _add(stats, _FIRST_DAY + number * _DAY, counts)
        else:
            async for number, counts in self._each("h", period.hours):
                _add(stats, hour_at(number, period.zone), counts)
        return stats

    async def recount(self, period: Period, attempts: AsyncIterable[Attempt], by: Sequence[Dimension]) -> Stats:
        """Return the statistics of a period as the journal of attempts has them, by client, channel or operator.

        Without what is not in the journal: calls that were only asked for, and verifications that were started.
        """
        counter = StatsCounter(self._prices)
        async for attempt in attempts:
            for at, event in counted_events(attempt):
                if period.begin <= at < period.end:
                    counter.observe(event)
        stats = Stats(period=period, by=by)
        for segment, counts in counter.calls.items():
            stats.add(period.first, segment, counts)
        return stats

    async def gauges(self) -> Mapping[str, int | Decimal | Mapping[str, Decimal]]:
        """Return today's calls and what they cost, for the metrics. Raises StoreUnavailable."""
        today = await self.read(by=[Dimension.CLIENT])
        clients = Counter({client: counts["cost"] for (client,), counts in today.rows.items()})
        spend = {client: to_rub(cost) for client, cost in clients.most_common(_MOST_CLIENTS)}
        return {
            "calls_today": today.total.placed,
            "spend_today_rub": today.total.spend_rub,
            "client_spend_today_rub": spend,
            "balance_fall_today_rub": to_rub(today.others["balance_fall"]),
        }

    async def _each(self, kind: str, numbers: range) -> AsyncIterator[tuple[int, Mapping[str, Sequence[int]]]]:
        """Read hours or days in small steps; return those with counts."""
        for start in range(0, len(numbers), _READ_AT_ONCE):
            some = numbers[start : start + _READ_AT_ONCE]
            for number, flat in await self._runner.run(READ, [self._key], [kind, some[0], some[-1]]):
                names, counts = (part.decode() for part in flat[::2]), (part.decode() for part in flat[1::2])
                yield number, {name: [*map(int, text.split(","))] for name, text in zip(names, counts, strict=True)}


def _pack(counter: StatsCounter) -> str:
    """Return counts as ``add.lua`` takes them."""
    packed = {name: [count] for name, count in counter.others.items()}
    for segment, counts in counter.calls.items():
        packed[f"{segment.client}|{segment.channel}|{segment.operator}"] = [counts[name] for name in CALL_COUNTS]
    return json.dumps(packed)


def _add(stats: Stats, at: date, counts: Mapping[str, Sequence[int]]) -> None:
    """Add the counts of an hour or a day; those of another version of the service are skipped."""
    for name, numbers in counts.items():
        match name.split("|"):
            case [client, channel, operator] if channel in _CHANNELS:
                named = dict(zip(CALL_COUNTS, numbers, strict=False))
                stats.add(at, Segment(client, Channel(channel), operator), named)
            case [other]:
                stats.others[other] += numbers[0]
