"""Erases what Redis holds about one phone, a right that Russian law 152-FZ gives people.

What stays identifies nobody: limits over addresses and ranges of a thousand numbers, daily counts, and the redemption
of a token, under the random part of an id that no longer exists, so that it is not redeemed twice. Answers kept for an
``Idempotency-Key`` are erased if they contain the phone or the id of an erased verification. One with a masked number,
which a thousand phones share, and the id of an expired verification expires within a day; a note with an id, in ten
minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.store.attempts import RedisAttempts
from app.store.call_following import RedisCallQueue
from app.store.layout import PhoneName, RecordName
from app.store.scripts import Argument, Script, ScriptRunner
from app.store.webhooks import DEAD, DEAD_EVENTS, outbox_key, retries_key
from app.verification.phone import Phone
from app.verification.ports import CallId

RECORD, PHONE, ANSWER, EVENTS, DEAD_LETTERS = (
    Script("erasure", name) for name in ("record", "phone", "answer", "events", "dead_letters")
)

_STEP = 1000  # how many entries one script examines: bounds how long it blocks Redis


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """How much was erased; ``phone``: the phone's own key, which outlives its verifications."""

    phone: bool
    verifications: int
    calls: int
    events: int
    answers: int
    attempts: int

    def __bool__(self) -> bool:
        return self != Erased(phone=False, verifications=0, calls=0, events=0, answers=0, attempts=0)


class RedisPhoneEraser:
    """Erases a phone. Each step is one script; if one fails, another run does the rest.

    ``phone_key`` is that of ``RedisVerificationStore``.
    """

    def __init__(self, runner: ScriptRunner, attempts: RedisAttempts, *, phone_key: bytes) -> None:
        self._runner = runner
        self._attempts = attempts
        self._queue = RedisCallQueue(runner)
        self._phone_key = phone_key

    async def erase(self, phone: Phone) -> Erased:
        """Erase everything about a phone. Raises StoreUnavailable: some of it may be erased."""
        name = PhoneName.from_phone(self._phone_key, phone)
        # Records first: as long as one exists, it may add events. Then the way that an event takes.
        records, calls = await self._erase_records(name)
        digits = phone.e164.removeprefix("+")
        events = await self._walk(EVENTS, [outbox_key(name.bucket)], digits)
        events += await self._walk(EVENTS, [retries_key(name.bucket)], digits)
        events += await self._walk(DEAD_LETTERS, [DEAD_EVENTS, DEAD], digits)
        texts: list[Argument] = [phone.e164, *(record.verification_id for record in records)]
        answers = sum([await self._runner.run(ANSWER, [key], texts) async for key in self._runner.scan("{i:*}")])
        known = await self._runner.run(PHONE, [name.key], [])
        late, late_calls = await self._erase_records(name)  # started meanwhile, so its phone's key is erased
        return Erased(
            phone=bool(known),
            verifications=len(records) + len(late),
            calls=calls + late_calls,
            events=events,
            answers=answers,
            attempts=await self._attempts.erase(phone),
        )

    async def _erase_records(self, name: PhoneName) -> tuple[list[RecordName], int]:
        """Examine all keys of the phone's bucket: the phone's key lists only the latest verifications."""
        found, calls = [], 0
        async for key in self._runner.scan(f"{{{name.bucket}}}:*"):
            record = RecordName.from_id(f"vrf_{name.bucket}{key.rpartition(':')[2]}")
            if record is None or record.key != key:  # a phone's key, or a redeemed token's
                continue
            if (numbers := await self._runner.run(RECORD, [key], [name.digest])) is not None:
                found.append(record)
                calls += len(numbers)
                for number in numbers:
                    await self._queue.done(CallId(record.verification_id, int(number)))
        return found, calls

    async def _walk(self, script: Script, keys: Sequence[str], digits: str) -> int:
        """Run a script with each cursor that it returns; return how many entries it has erased."""
        total, cursor = 0, b"0"
        while True:
            cursor, count = await self._runner.run(script, keys, [digits, cursor, _STEP])
            total += int(count)
            if cursor == b"0":
                return total
