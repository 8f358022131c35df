"""Erases what Redis holds about one phone (Russian law 152-FZ gives people that right).

What stays names nobody: limits over addresses and over ranges of a thousand numbers, counters of days, and the
remembered redemption of a token, under the random part of an id that exists no more, so that it is not redeemed twice.
Of answers kept for an ``Idempotency-Key``, those with the whole phone or the id of an erased verification go. One that
holds only a mask, which a thousand numbers share, and the id of a verification that had expired before, goes by itself:
within a day; a note of what a request had begun holds an id alone, for ten minutes.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.store.call_following import RedisCallQueue
from app.store.failures import reason_of
from app.store.keys import PhoneName, RecordName
from app.store.scripts import Argument, Script, ScriptRunner
from app.store.webhooks import DEAD, EXPIRY, GROUP, LETTERS, RETRY, STREAM
from app.verification.errors import StoreUnavailable
from app.verification.phone import Phone
from app.verification.ports import CallId

RECORD = Script("erasure", "record", after=["verification/record"])
PHONE, ANSWER = (Script("erasure", name) for name in ("phone", "answer"))
EXPIRIES, SET_ASIDE, EVENTS = (Script("erasure", name) for name in ("expiry", "letters", "events"))

_STEP = 1000  # how many entries one script, or one SCAN, looks at: bounds how long it holds Redis up


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """How much was erased: ``phone`` is what the phone itself was remembered by, over all its verifications."""

    phone: bool
    verifications: int
    calls: int
    events: int
    answers: int

    def __bool__(self) -> bool:
        return self != Erased(phone=False, verifications=0, calls=0, events=0, answers=0)


class RedisPhoneEraser:
    """Erases a phone. Each step is one script; run again after it broke off, it does the rest.

    ``phone_key`` is that of the names, as for ``RedisVerificationStore``.
    """

    def __init__(self, redis: Redis, runner: ScriptRunner, *, phone_key: bytes) -> None:
        self._redis = redis
        self._runner = runner
        self._queue = RedisCallQueue(runner)
        self._phone_key = phone_key

    async def forget(self, phone: Phone) -> Erased:
        """Erase everything about a phone. Raises StoreUnavailable: a part of it may be erased."""
        name = PhoneName.from_phone(self._phone_key, phone)
        # Records first: as long as there is one, it may tell of itself. An event that expires moves on into the stream,
        # and so does one that waits for another try: the stream comes last.
        records, calls = await self._forget_records(name)
        digits = phone.e164.removeprefix("+")
        events = await self._walk(EXPIRIES, [EXPIRY], [digits], "0")
        events += await self._walk(SET_ASIDE, [LETTERS, RETRY, DEAD], [digits], "0")
        events += await self._walk(EVENTS, [STREAM], [digits], "-", GROUP)
        answers = await self._forget_answers(phone, records)
        known = await self._runner.run(PHONE, [name.key], [])
        late, more = await self._forget_records(name)  # one that was started meanwhile, which the phone knows no more
        return Erased(
            phone=bool(known),
            verifications=len(records) + len(late),
            calls=calls + more,
            events=events,
            answers=answers,
        )

    async def _forget_records(self, name: PhoneName) -> tuple[list[RecordName], int]:
        """Look at all keys of the phone's bucket: the phone knows only the latest verification of each purpose."""
        found, calls = [], 0
        async for key in self._scan(f"pv:{{{name.bucket}}}:*"):
            rest = key.rpartition(":")[2]
            record = RecordName.from_id(RecordName(name.bucket, rest).verification_id)
            if record is None or record.key != key:  # a phone's key, or a redeemed token's
                continue
            if (serials := await self._runner.run(RECORD, [key], [name.digest])) is not None:
                found.append(record)
                calls += len(serials)
                for serial in serials:
                    await self._queue.done(CallId(record.verification_id, int(serial)))
        return found, calls

    async def _forget_answers(self, phone: Phone, records: Sequence[RecordName]) -> int:
        texts: list[Argument] = [phone.e164, *(record.verification_id for record in records)]
        return sum([await self._runner.run(ANSWER, [key], texts) async for key in self._scan("pv:{i:*}")])

    async def _walk(
        self, script: Script, keys: Sequence[str], fixed: Sequence[Argument], cursor: str, *more: str
    ) -> int:
        total = 0
        while True:
            told, count = await self._runner.run(script, keys, [*fixed, cursor, _STEP, *more])
            total += int(count)
            cursor = told.decode()
            if cursor in {"0", ""}:
                return total

    async def _scan(self, pattern: str) -> AsyncIterator[str]:
        try:
            async for key in self._redis.scan_iter(match=pattern, count=_STEP):
                yield key.decode()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(reason_of(error)) from error
