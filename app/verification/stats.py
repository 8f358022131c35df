"""Statistics of calls: how many were asked for, placed, answered and verified, by whom, and what they cost."""

from calendar import monthrange
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import StrEnum
from math import ceil
from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.verification.attempts import Attempt, Ending, Outcome
from app.verification.channels import Channel
from app.verification.domain_events import (
    BalanceChanged,
    CallAsked,
    CallEnded,
    CallNeverPlaced,
    CallPlaced,
    CallRefused,
    CodeRejected,
    DomainEvent,
    LimitHit,
    Segment,
    VerificationCanceled,
    VerificationStarted,
    VerificationSucceeded,
)
from app.verification.model import CallStatus, Status
from app.verification.values import value

DAYS_KEPT = 400  # today among them
HOURS_KEPT = 35  # days before today whose hours are kept

_HOUR = 3600  # seconds
_UNIT = Decimal("0.0001")  # of a ruble: money is counted in whole units, and prices have four decimals

UNANSWERED = tuple(status for status in CallStatus if status.is_unanswered)


def to_units(rub: Decimal) -> int:
    """Return an amount in RUB as a whole number of 0.0001 RUB."""
    return int(rub / _UNIT)


def to_rub(units: int) -> Decimal:
    """Return a number of 0.0001 RUB in RUB, with two decimals or as many as it needs."""
    rub = units * _UNIT
    return rub if units % 100 else rub.quantize(Decimal("0.01"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPrices:
    """The prices of a call in RUB, by channel: of one that was answered, and of one that was not."""

    answered: Mapping[Channel, Decimal]
    unanswered: Mapping[Channel, Decimal]

    def price(self, channel: Channel, status: CallStatus) -> Decimal:
        """Return what a call costs as far as its status tells.

        A call that is under way, or whose end is never reported, counts as answered; a reverse call, which the person
        makes, as unanswered.
        """
        is_dialled = not channel.rules.has_code
        is_unanswered = status.is_unanswered or (is_dialled and not status.is_final)
        return (self.unanswered if is_unanswered else self.answered)[channel]


def parse_zone(name: str) -> tzinfo:
    """Return a time zone of the IANA data base, such as ``Europe/Moscow``. Raises ValueError.

    UTC is known without that data base, which small systems lack (Debian's package ``tzdata``).
    """
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError, ValueError):  # unknown, a directory, or no name at all
        raise ValueError("must be a time zone that this machine knows, such as Europe/Moscow, or UTC") from None


class CallCounts(Counter[str]):
    """Counts of calls: ``asked``, ``started`` (verifications), by status, ``verified``; and ``cost``, in 0.0001 RUB."""

    @property
    def placed(self) -> int:
        """Calls that were placed, or may have been."""
        return self[CallStatus.INITIATED] + self[CallStatus.UNCONFIRMED]

    @property
    def answered(self) -> int:
        """Calls that somebody answered, or made, if it was a reverse call."""
        return self[CallStatus.COMPLETED]

    @property
    def unanswered(self) -> int:
        """Calls that ended without an answer."""
        return sum(self[status] for status in UNANSWERED)

    @property
    def conversion(self) -> float | None:
        """The share of placed calls that verified somebody; None without any calls."""
        return self["verified"] / self.placed if self.placed else None

    @property
    def spend_rub(self) -> Decimal:
        """What the calls cost."""
        return to_rub(self["cost"])


class StatsCounter:
    """Counts domain events: the calls of each segment, and what belongs to no call by name."""

    def __init__(self, prices: CallPrices) -> None:
        self._cost = {
            (channel, status): to_units(prices.price(channel, status)) for channel in Channel for status in CallStatus
        }
        self.calls: defaultdict[Segment, CallCounts] = defaultdict(CallCounts)
        self.others: Counter[str] = Counter()
        self.events = 0

    def observe(self, event: DomainEvent) -> None:  # noqa: C901 - a table, written as a match
        """Count an event."""
        self.events += 1
        match event:
            case CallAsked(segment):
                self.calls[segment]["asked"] += 1
            case VerificationStarted(segment):
                self.calls[segment]["started"] += 1
            case CallPlaced(segment, status):
                counts = self.calls[segment]
                counts[status] += 1
                counts["cost"] += self._cost[segment.channel, status]
            case CallNeverPlaced(segment):
                counts = self.calls[segment]
                counts[CallStatus.UNCONFIRMED] -= 1
                counts["cost"] -= self._cost[segment.channel, CallStatus.UNCONFIRMED]
            case CallEnded(segment, status):
                counts = self.calls[segment]
                counts[status] += 1
                counts["cost"] += (
                    self._cost[segment.channel, status] - self._cost[segment.channel, CallStatus.INITIATED]
                )
            case VerificationSucceeded(segment):
                self.calls[segment]["verified"] += 1
            case CodeRejected(status):
                self.others["wrong"] += 1
                if status is Status.LOCKED:
                    self.others["locked"] += 1
            case VerificationCanceled():
                self.others["canceled"] += 1
            case CallRefused(channel, error):
                self.others[f"refused:{channel}:{error.kind}"] += 1
            case LimitHit(name):
                self.others[f"limit:{name}"] += 1
            case BalanceChanged(rub):
                self.others["balance_rise" if rub > 0 else "balance_fall"] += abs(to_units(rub))


def counted_events(attempt: Attempt) -> Iterator[tuple[datetime, DomainEvent]]:
    """Return the events of an attempt that are counted, each with its moment, from its entries in the journal."""
    segment = Segment(attempt.client, Channel(attempt.channel), attempt.operator)
    is_placed = False
    for entry in attempt.timeline:
        match entry.event:
            case Outcome.PLACED | Outcome.UNCONFIRMED if not is_placed:
                is_placed = True
                is_confirmed = entry.event == Outcome.PLACED
                status = CallStatus.INITIATED if is_confirmed else CallStatus.UNCONFIRMED
                yield entry.at, CallPlaced(segment, status)
            case Outcome.REFUSED if is_placed:
                yield entry.at, CallNeverPlaced(segment)
            case CallStatus.COMPLETED | CallStatus.BUSY | CallStatus.NO_ANSWER | CallStatus.FAILED:
                yield entry.at, CallEnded(segment, CallStatus(entry.event))
            case Ending.VERIFIED:
                yield entry.at, VerificationSucceeded(segment)
    if attempt.outcome is Outcome.UNCONFIRMED and not is_placed:  # the process that placed it has died
        yield attempt.started_at, CallPlaced(segment, CallStatus.UNCONFIRMED)


class Dimension(StrEnum):
    """What statistics can be grouped by."""

    CLIENT = "client"
    CHANNEL = "channel"
    OPERATOR = "operator"
    DAY = "day"
    HOUR = "hour"


class InvalidPeriod(Exception):
    """There are no statistics of a period; ``parameter`` of the request is wrong, for a ``reason``."""

    def __init__(self, parameter: str, reason: str) -> None:
        super().__init__(reason)
        self.parameter = parameter
        self.reason = reason


@value
class Period:
    """Whole days in a time zone, ``last`` among them.

    An hour of UTC belongs to the day in which it begins: in a zone with half hours, such as +05:30, the first half hour
    of a day is counted in the day before.
    """

    first: date
    last: date
    zone: tzinfo

    @classmethod
    def choose(
        cls, now: datetime, *, month: str | None = None, first: date | None = None, last: date | None = None
    ) -> Self:
        """Return a month such as ``2026-01``, or the days from ``first`` to ``last``, or today; none is after today.

        Days are those of the time zone of ``now``. Raise InvalidPeriod.
        """
        today = now.date()
        if month and (first or last):
            raise InvalidPeriod("month", "leave it out, or leave out the first and the last day")
        if last and not first:
            raise InvalidPeriod("from", "is required beside the last day")
        if month:
            try:
                first = date.fromisoformat(f"{month}-01")
            except ValueError:
                raise InvalidPeriod("month", "must be a month such as 2026-01") from None
            last = first.replace(day=monthrange(first.year, first.month)[1])
        first, last = first or today, last or today
        if first > today:
            raise InvalidPeriod("month" if month else "from", "must not be after today")
        if last < first:
            raise InvalidPeriod("to", "must not be before the first day")
        return cls(first, min(last, today), now.tzinfo or UTC)

    @property
    def days(self) -> int:
        """The number of days."""
        return (self.last - self.first).days + 1

    @property
    def hours(self) -> range:
        """The hours of UTC that begin within the period, in hours since 1970."""
        return range(self._hour_at(self.first), self._hour_at(self.last + timedelta(days=1)))

    @property
    def begin(self) -> datetime:
        """The beginning of its first hour."""
        return hour_at(self.hours.start, UTC)

    @property
    def end(self) -> datetime:
        """The end of its last hour."""
        return hour_at(self.hours.stop, UTC)

    def _hour_at(self, day: date) -> int:
        return ceil(datetime.combine(day, time(), self.zone).timestamp() / _HOUR)


def hour_at(hour: int, zone: tzinfo) -> datetime:
    """Return the beginning of an hour since 1970."""
    return datetime.fromtimestamp(hour * _HOUR, UTC).astimezone(zone)


@dataclass(slots=True, kw_only=True)
class Stats:
    """The statistics of a period. ``rows`` are by the values of the dimensions ``by``.

    ``others`` counts what belongs to no call: ``wrong`` codes, verifications that were ``locked`` or ``canceled``,
    ``limit:<name>``, ``refused:<channel>:<kind>``, and by how much the balance fell and rose, in 0.0001 RUB.
    """

    period: Period
    by: Sequence[Dimension] = ()
    rows: dict[tuple[str, ...], CallCounts] = field(default_factory=dict)
    total: CallCounts = field(default_factory=CallCounts)
    others: Counter[str] = field(default_factory=Counter)

    def add(self, at: date | datetime, segment: Segment, counts: Mapping[str, int]) -> None:
        """Add the counts of a segment on a day, or in the hour that begins ``at``."""
        values = {
            Dimension.CLIENT: segment.client,
            Dimension.CHANNEL: segment.channel.value,
            Dimension.OPERATOR: segment.operator,
            Dimension.DAY: (at.date() if isinstance(at, datetime) else at).isoformat(),
            Dimension.HOUR: at.isoformat(timespec="minutes") if isinstance(at, datetime) else "",
        }
        self.total.update(counts)
        if self.by:
            self.rows.setdefault(tuple([values[each] for each in self.by]), CallCounts()).update(counts)

    @property
    def limits(self) -> Mapping[str, int]:
        """Starts and checks that a limit refused, by its name."""
        return {name.removeprefix("limit:"): n for name, n in self.others.items() if name.startswith("limit:")}

    @property
    def refused(self) -> Mapping[tuple[Channel, str], int]:
        """Calls that the provider did not place, by channel and kind of error."""
        found = {}
        for name, count in self.others.items():
            match name.split(":"):
                case ["refused", channel, kind] if channel in set(Channel):
                    found[Channel(channel), kind] = count
        return found
