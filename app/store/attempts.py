"""The journal of attempts in Redis, as it is read and erased. The scripts that change a verification write it.

It is a stream for each bucket. What may be in any bucket is read from all 4,096 in small steps. Starts that were
refused before a provider was asked are no attempts: they are counted, in memory first.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from app.store.attempt_entries import BEGUN, Entry, read_attempts
from app.store.layout import PhoneName, RecordName, from_ms, ms, name_journal, name_refused_starts, to_ms
from app.store.scripts import Argument, Script, ScriptRunner
from app.verification.attempts import Attempt, AttemptFilter, AttemptPage, RefusedStarts
from app.verification.domain_events import DomainEvent, LimitHit, NoProviderReady
from app.verification.phone import Phone
from app.verification.stats import CallPrices

READ, COUNT_REFUSED, READ_REFUSED, LEASE_REPORT, END_REPORT = (
    Script("attempts", name) for name in ("read", "count_refused", "read_refused", "lease_report", "end_report")
)
ERASE = Script("erasure", "attempts")

_BUCKETS = [f"{number:03x}" for number in range(4096)]
_BUCKETS_AT_ONCE = 64
_STEP = 1000  # entries that one script reads or deletes
_MOST_OF_PAGE = 20_000  # entries read for a page, about: then it ends, whatever it has found
_FIRST_SPAN, _SPAN_GROWS = timedelta(minutes=1), 8  # of what a page reads at once, the latest first
FINISHED_AFTER = timedelta(minutes=15)  # nothing happens to an attempt any more: its code expires after five at most

_REPORT = "{attempts}"
_SHORTEST_REPORT, _LONGEST_REPORT, _LEASE = timedelta(minutes=1), timedelta(hours=1), timedelta(minutes=2)

_FLUSHED_EVERY = timedelta(seconds=1)
_MOST_REFUSED = 10_000  # kinds of refused starts in memory; beyond them further ones are not counted
_MOST_REFUSED_OF_DAY = 64  # kinds of a bucket and a day
_DAY = timedelta(days=1)


class RedisAttempts:
    """The ``AttemptJournal`` of ``app/verification/attempts.py``, in Redis. All methods raise StoreUnavailable.

    ``phone_key`` is that of ``RedisVerificationStore``. A code expires after ``lifetime``; attempts are found for
    ``kept``, and refused starts are counted for as long. ``clock`` tells the time.
    """

    def __init__(
        self,
        runner: ScriptRunner,
        *,
        phone_key: bytes,
        lifetime: timedelta,
        kept: timedelta,
        prices: CallPrices,
        clock: Callable[[], datetime],
    ) -> None:
        self._runner = runner
        self._phone_key = phone_key
        self._kept = kept
        self._attempts = partial(read_attempts, lifetime=lifetime, prices=prices)
        self._clock = clock
        self._refused: Counter[tuple[PhoneName, datetime, str]] = Counter()

    async def of_verification(self, verification_id: str) -> Sequence[Attempt]:
        """Return the attempts of a verification."""
        name, now = RecordName.from_id(verification_id), self._clock()
        if name is None:
            return ()
        attempts = self._attempts(name.bucket, await self._entries(name.bucket, now - self._kept, now), now=now)
        return [attempt for attempt in attempts if attempt.verification_id == verification_id]

    async def of_phone(self, phone: Phone, since: datetime) -> Sequence[Attempt]:
        """Return the attempts to call a phone."""
        name, now = self._name(phone), self._clock()
        entries = await self._entries(name.bucket, max(since, now - self._kept), now)
        attempts = self._attempts(name.bucket, entries, now=now)
        return _latest_first([one for one in attempts if one.phone_digest == name.bucket + name.digest])

    async def page(self, wanted: AttemptFilter, *, since: datetime, before: datetime, most: int) -> AttemptPage:
        """Return the latest attempts that are wanted, in a period of time."""
        found: list[Attempt] = []
        now = self._clock()
        since = max(since, now - self._kept)
        span, end, read = _FIRST_SPAN, min(before, now), 0
        while since < end and len(found) < most and read < _MOST_OF_PAGE:
            begin = max(since, end - span)
            async for bucket, entries in self._of_all_buckets(begin, end):
                read += len(entries)
                attempts = self._attempts(bucket, entries, now=now)
                found += [one for one in attempts if begin <= one.started_at < end and wanted.accepts(one)]
            span, end = span * _SPAN_GROWS, begin
        found = _latest_first(found)
        if len(found) > most:
            end = found[most - 1].started_at
            found = [attempt for attempt in found if attempt.started_at >= end]
        return AttemptPage(attempts=found, next_before=end if since < end else None)

    async def finished(self, since: datetime, before: datetime) -> AsyncIterator[Attempt]:
        """Yield the attempts that began in between, in no order. 15 minutes after it began one is finished."""
        async for bucket, entries in self._of_all_buckets(since, before):
            for attempt in self._attempts(bucket, entries, now=before + FINISHED_AFTER):
                if since <= attempt.started_at < before:
                    yield attempt

    async def report(self, publish: Callable[[Attempt], None]) -> timedelta:
        """Publish the attempts that have finished, by one of all workers, and return when to do so again.

        After a failure some are published twice.
        """
        token = secrets.token_hex(8)
        spans = (FINISHED_AFTER, _SHORTEST_REPORT, _LONGEST_REPORT, _LEASE)
        leased = await self._runner.run(LEASE_REPORT, [_REPORT], [*map(ms, spans), token, ms(self._kept)])
        if not leased:
            return _SHORTEST_REPORT
        async for attempt in self.finished(*map(from_ms, leased)):
            publish(attempt)
        await self._runner.run(END_REPORT, [_REPORT], [token, leased[1], ms(self._kept)])
        return timedelta(0)

    async def erase(self, phone: Phone) -> int:
        """Erase the attempts to call a phone, and return how many there were."""
        name = self._name(phone)
        entries = [entry async for entry in self._stream(name.bucket, "-", "+")]
        begun = [entry for entry in entries if entry.kind == BEGUN and entry.fields[6] == name.digest]
        marks = {entry.mark for entry in begun}
        for ids in _in_steps([entry.id for entry in entries if entry.mark in marks], _STEP):
            await self._runner.run(ERASE, [name_journal(name.bucket)], ids)
        await self._read_refused(name, self._clock() - self._kept, delete=True)
        return len(begun)

    def observe(self, event: DomainEvent) -> None:
        """Count a start that was refused before a provider was asked; a ``Publish``."""
        match event:
            case LimitHit(reason, phone=Phone() as phone):
                self._count_refused(phone, reason)
            case NoProviderReady(phone, error):
                self._count_refused(phone, f"provider_{error.kind}")

    def _count_refused(self, phone: Phone, reason: str) -> None:
        if self._kept and len(self._refused) < _MOST_REFUSED:
            hour = self._clock().replace(minute=0, second=0, microsecond=0)
            self._refused[self._name(phone), hour, reason] += 1

    async def flush(self) -> timedelta:
        """Add the refused starts to those in Redis, and return when to do so again. If that fails, they are lost."""
        refused, self._refused = self._refused, Counter()
        hashes: dict[str, list[Argument]] = {}
        for (name, hour, reason), count in refused.items():
            key = name_refused_starts(name.bucket, hour.date())
            expires = to_ms(hour) + ms(self._kept + _DAY)
            counts = hashes.setdefault(key, [expires, _MOST_REFUSED_OF_DAY])
            counts += [f"{hour:%H} {name.digest} {reason}", count]
        for key, counts in hashes.items():
            await self._runner.run(COUNT_REFUSED, [key], counts)
        return _FLUSHED_EVERY

    async def refused_starts(self, phone: Phone, since: datetime) -> Sequence[RefusedStarts]:
        """Return how many starts of a phone were refused."""
        found = await self._read_refused(self._name(phone), since)
        return sorted(found, key=lambda starts: (starts.hour, starts.reason), reverse=True)

    async def _read_refused(self, name: PhoneName, since: datetime, *, delete: bool = False) -> list[RefusedStarts]:
        now, found = self._clock(), []
        since = max(since, now - self._kept)
        for number in range((now.date() - since.date()).days + 1):
            day = since.date() + timedelta(days=number)
            words = await self._runner.run(
                READ_REFUSED, [name_refused_starts(name.bucket, day)], [name.digest, int(delete)]
            )
            for kind, count in zip(words[::2], words[1::2], strict=True):
                hour, _, reason = kind.decode().split(" ")
                at = datetime(day.year, day.month, day.day, int(hour), tzinfo=UTC)
                found.append(RefusedStarts(hour=at, reason=reason, count=int(count)))
        return found

    def _name(self, phone: Phone) -> PhoneName:
        return PhoneName.from_phone(self._phone_key, phone)

    async def _of_all_buckets(self, begin: datetime, end: datetime) -> AsyncIterator[tuple[str, Sequence[Entry]]]:
        """Yield the entries of each bucket that has any of attempts that began in between."""
        for buckets in _in_steps(_BUCKETS, _BUCKETS_AT_ONCE):
            reads = [self._entries(bucket, begin - FINISHED_AFTER, end + FINISHED_AFTER) for bucket in buckets]
            for bucket, entries in zip(buckets, await asyncio.gather(*reads), strict=True):
                if entries:
                    yield bucket, entries

    async def _entries(self, bucket: str, begin: datetime, end: datetime) -> Sequence[Entry]:
        return [entry async for entry in self._stream(bucket, str(to_ms(begin)), str(to_ms(end)))]

    async def _stream(self, bucket: str, first: str, last: str) -> AsyncIterator[Entry]:
        while True:
            words = await self._runner.run(READ, [name_journal(bucket)], [first, last, _STEP])
            for entry_id, text in zip(words[::2], words[1::2], strict=True):
                yield Entry.parse(entry_id, text)
            if len(words) < 2 * _STEP:
                return
            first = f"({words[-2].decode()}"


def _latest_first(attempts: Sequence[Attempt]) -> list[Attempt]:
    return sorted(attempts, key=lambda attempt: attempt.started_at)[::-1]


def _in_steps(texts: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """Return the texts in pieces of up to ``most``."""
    return (texts[start : start + most] for start in range(0, len(texts), most))
