"""Erases what Redis holds about one phone, a right that Russian law 152-FZ gives people.

What stays identifies nobody: limits over addresses and ranges of a thousand numbers, daily counts, and the redemption
of a token, under the random part of an id that no longer exists, so that it is not redeemed twice. Answers kept for an
``Idempotency-Key`` are erased if they contain the phone or the id of an erased verification. One with a masked number,
which a thousand phones share, and the id of an expired verification expires within a day; a note with an id, in ten
minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.store.call_following import RedisCallQueue
from app.store.connection import AnyRedis
from app.store.failures import reason_of
from app.store.layout import PhoneName, RecordName, with_version
from app.store.scripts import Argument, Script, ScriptRunner
from app.store.webhooks import BODIES, DEAD, EXPIRY, GROUP, RETRY, STREAM
from app.verification.errors import StoreUnavailable
from app.verification.phone import Phone
from app.verification.ports import CallId

RECORD, PHONE, ANSWER, SET_ASIDE, EVENTS = (
    Script("erasure", name) for name in ("record", "phone", "answer", "set_aside", "events")
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

    def __bool__(self) -> bool:
        return self != Erased(phone=False, verifications=0, calls=0, events=0, answers=0)


class RedisPhoneEraser:
    """Erases a phone. Each step is one script; if one fails, another run does the rest.

    ``phone_key`` is that of ``RedisVerificationStore``.
    """

    def __init__(self, redis: AnyRedis, runner: ScriptRunner, *, phone_key: bytes) -> None:
        self._redis = cast(Redis, redis)  # of a cluster the events cannot be erased yet
        self._runner = runner
        self._queue = RedisCallQueue(runner)
        self._phone_key = phone_key

    async def forget(self, phone: Phone) -> Erased:
        """Erase everything about a phone. Raises StoreUnavailable: some of it may be erased."""
        name = PhoneName.from_phone(self._phone_key, phone)
        # Records first: as long as one exists, it may add events. An event that expires or waits for another try moves
        # on into the stream, so the stream comes last.
        records, calls = await self._erase_records(name)
        digits = phone.e164.removeprefix("+")
        events = await self._erase_expiry_events(digits)
        events += await self._walk(SET_ASIDE, [BODIES, RETRY, DEAD], [digits], "0")
        events += await self._walk(EVENTS, [STREAM], [digits], "-", GROUP)
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

    async def _erase_expiry_events(self, digits: str) -> int:
        """Erase the scheduled expiry events, whose last field is the phone; return how many."""
        try:
            key = with_version(self._runner.prefix) + EXPIRY
            found = [event async for event, _ in self._redis.zscan_iter(key, match=f"*|{digits}", count=_STEP)]
            return int(await self._redis.zrem(key, *found)) if found else 0
        except (RedisError, OSError) as error:
            raise StoreUnavailable(reason_of(error)) from error

    async def _walk(
        self, script: Script, keys: Sequence[str], first: Sequence[Argument], cursor: str, *last: str
    ) -> int:
        """Run a script with each cursor that it returns; return how many entries it has erased."""
        total = 0
        while True:
            reply, count = await self._runner.run(script, keys, [*first, cursor, _STEP, *last])
            total += int(count)
            cursor = reply.decode()
            if cursor in {"0", ""}:
                return total
