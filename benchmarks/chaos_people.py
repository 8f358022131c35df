"""Users of the chaos test: they start, hear, dial, type, mistype, ask again, cancel, or give up.

They repeat requests with an ``Idempotency-Key``: after a 503, after a broken connection, and at random.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import count
from typing import Any

from app.sandbox.calls import VirtualCall
from app.verification.channels import Channel
from benchmarks.chaos_client import STORE_UNAVAILABLE, Answer, Client
from benchmarks.chaos_ledger import Ledger, Right
from benchmarks.chaos_network import ChoosingNetwork

# This prefix contains no magic numbers and no numbers of MTS, which flash calls do not reach.
_PREFIX = "+7902"
_PURPOSES = ("phone_verification", "login")
_CHANNELS = {Channel.VOICE: 40, Channel.FLASH_CALL: 20, Channel.REVERSE_CALL: 15, None: 25}
_MANNERS = {
    "right": 30,
    "mistyped": 12,
    "again": 10,
    "again without the id": 13,
    "at once": 10,
    "guess": 6,
    "cancel": 7,
    "forget": 12,
}
_SENT_TWICE = 0.1  # share of starts that are sent twice at once, with the same key
_SENT_AGAIN = 0.3  # share of answered requests that are sent again
_WITH_KEY = 0.7  # share of checks
_CHECKS_AT_ONCE = 3
_HEARD_WITHIN = 4.0  # seconds
_DIALS_AFTER = 1.2  # seconds; longer than PLUSOFON_HOOK_DELAY_SECONDS
_CONFIRMED_WITHIN = 8.0  # the provider repeats a callback after 1 s and 2 s more
_MOST_GUESSES = 8
_INSISTS_FOR = 15.0  # seconds for which a start is retried


@dataclass(slots=True, kw_only=True)
class Pending:
    """A pending verification of a user.

    ``good_until``: the first code is valid at least until then. ``calls``: the ids of the calls that rang, with the
    last known state of each. ``wrong_attempts``: wrong codes that were sent, of ``checks`` allowed.
    """

    id: str
    phone: str
    purpose: str
    channel: str | None
    dial: str | None
    good_until: float
    checks: int
    calls: dict[str, str] = field(default_factory=dict)
    wrong_attempts: int = 0


class People:
    """All users, who share only the service and the network."""

    def __init__(
        self, client: Client, network: ChoosingNetwork, ledger: Ledger, *, lifetime: float, cooldown: float
    ) -> None:
        self._client = client
        self._network = network
        self._ledger = ledger
        self._lifetime = lifetime
        self._cooldown = cooldown
        self._numbers = count(1_000_000)
        self._random = random.Random(7)  # noqa: S311 - the same users each time
        self.phones: set[str] = set()
        self.unanswered: set[str] = set()

    async def verify_one(self) -> None:
        """Run one user with a new phone through a verification, in a random manner."""
        phone = f"{_PREFIX}{next(self._numbers):07}"
        self.phones.add(phone)
        channel = _draw(self._random, _CHANNELS)
        body = {"phone": phone, "purpose": self._random.choice(_PURPOSES)} | ({"channel": channel} if channel else {})
        pending = await self._start(body)
        if pending is None:
            return
        manner = _draw(self._random, _MANNERS)
        self._ledger.counts[f"people: {manner}"] += 1
        match manner:
            case "again":
                await self._finish(await self._call_again(pending, body), mistypes=False)
            case "again without the id":
                await self._have_two(pending, body)
            case "at once":
                await self._check_at_once(pending)
            case "guess":
                await self._guess(pending)
            case "cancel":
                await self._cancel(pending)
            case "forget":
                pass
            case _:
                await self._finish(pending, mistypes=manner == "mistyped")

    def calls(self, phone: str) -> list[VirtualCall]:
        """Return the calls that rang a phone. A reverse call rings no phone: it is a number to be called."""
        return [call for call in self._network.calls_of(phone) if call.channel is not Channel.REVERSE_CALL]

    async def _start(self, body: Mapping[str, Any]) -> Pending | None:
        """Start with one key: repeated after a refusal, without a response, or at random."""
        phone, key = body["phone"], str(uuid.uuid4())
        before, began = len(self.calls(phone)), time.monotonic()

        async def send() -> Answer:
            return await self._client.send("POST", "/verify/start", body, key=key)

        answers = await asyncio.gather(*(send() for _ in range(2 if self._random.random() < _SENT_TWICE else 1)))
        if len({one.body["verification_id"] for one in answers if one.status == HTTPStatus.CREATED}) > 1:
            self._ledger.placed_twice.append(f"{phone}: two verifications for one key")
        answer = await self._insist(_best(answers), send, until=began + _INSISTS_FOR)
        was_unsure = answer.was_cut_off or any(one.was_cut_off for one in answers)
        rang = self.calls(phone)[before:]
        self._ledger.note_start(phone, key, _outcome(answer), [call.began for call in rang])
        if answer.status != HTTPStatus.CREATED:
            if was_unsure or answer.problem == STORE_UNAVAILABLE:
                self.unanswered.add(phone)
            return None
        verification_id = answer.body["verification_id"]
        self._ledger.note_created(verification_id, phone)
        if self._random.random() < _SENT_AGAIN:
            await asyncio.sleep(self._random.uniform(0, 2))
            again = await self._insist(await send(), send, until=time.monotonic() + _INSISTS_FOR)
            if again.status:
                self._ledger.note_repeated_start(phone, verification_id, again.body.get("verification_id"))
        return Pending(
            id=verification_id,
            phone=phone,
            purpose=body["purpose"],
            channel=answer.body["channel"],
            dial=answer.body.get("dial"),
            good_until=began + self._lifetime,
            checks=answer.body["checks_left"],
            calls={call.call_id: answer.body["call"]["status"] for call in rang},
        )

    async def _insist(self, answer: Answer, send: Callable[[], Awaitable[Answer]], *, until: float) -> Answer:
        """Retry a request during a Redis outage, and once more after any other temporary refusal."""
        was_unsure, refusals, began = answer.was_cut_off, 0, answer.began
        while time.monotonic() < until:
            if answer.problem == STORE_UNAVAILABLE:
                was_unsure = True
            elif was_unsure and answer.problem == "call-cooldown":
                self._ledger.counts["reported a cooldown after a 503"] += 1
            elif answer.status in {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE} and not refusals:
                refusals += 1
                self._ledger.counts["refused, and asked again"] += 1
            else:
                break
            self._ledger.counts[f"again after {answer.word}"] += 1
            await asyncio.sleep(0.5)
            answer = await send()
            was_unsure = was_unsure or answer.was_cut_off
        return replace(answer, was_cut_off=was_unsure, began=began)

    async def _call_again(self, pending: Pending, body: Mapping[str, Any]) -> Pending:
        """Resend: another call of the same verification. A reverse call has no resend: it is started again."""
        await asyncio.sleep(self._cooldown + 0.1)
        again = await self._start({**body, "channel": Channel.VOICE, "verification_id": pending.id})
        if again is None:
            return pending
        if again.id != pending.id:
            if pending.channel != Channel.REVERSE_CALL:
                self._ledger.not_verified.append(f"{pending.id} {pending.phone}: called again as {again.id}")
            return again
        return replace(again, good_until=pending.good_until, calls={**pending.calls, **again.calls})

    async def _have_two(self, first: Pending, body: Mapping[str, Any]) -> None:
        """Start another verification of the same phone and purpose. Each has its own code, and both verify."""
        await asyncio.sleep(self._cooldown + 0.1)
        second = await self._start({**body, "channel": Channel.VOICE})
        if second and second.id == first.id:
            self._ledger.not_verified.append(f"{first.id} {first.phone}: two starts without an id share it")
        for pending in filter(None, (second, first)):
            await self._finish(pending, mistypes=False)

    async def _check_at_once(self, pending: Pending) -> None:
        """Send the right code in several concurrent requests: only one of them verifies, with its repetitions."""
        heard = await self._hear(pending) if pending.channel != Channel.REVERSE_CALL else None
        if heard is None:
            return
        checks = [self._check(pending, heard.heard, key=str(uuid.uuid4())) for _ in range(_CHECKS_AT_ONCE)]
        rights = [self._right(pending, heard, *checked) for checked in await asyncio.gather(*checks)]
        for right in sorted(rights, key=lambda right: right.verified_id is None):
            self._ledger.note_right(right)

    async def _finish(self, pending: Pending, *, mistypes: bool) -> None:
        """Check the right code, or make the reverse call."""
        if pending.channel == Channel.REVERSE_CALL and pending.dial:
            await self._dial(pending, pending.dial)
            return
        heard = await self._hear(pending)
        if heard is None:
            self._ledger.counts["nothing heard"] += 1
            return
        code = heard.heard or ""
        if mistypes:
            _, _, answer = await self._check(pending, _another(code), insists=False)
            pending.wrong_attempts += answer.attempts
            self._ledger.counts[f"mistyped: {answer.word}"] += 1
        # Any valid code of this verification, the first as well as the last.
        body, key, answer = await self._check(pending, code)
        self._ledger.note_right(self._right(pending, heard, body, key, answer))
        if answer.body.get("verified"):
            await self._check_again(pending, heard, body, key)

    async def _check_again(
        self, pending: Pending, heard: VirtualCall, body: Mapping[str, Any], key: str | None
    ) -> None:
        """Repeat a successful check, with its key and with another one: only the first returns the token again."""
        if key and self._random.random() < _SENT_AGAIN:
            await asyncio.sleep(self._random.uniform(0, 1))
            answer = await self._send_check(body, key, until=pending.good_until)
            self._ledger.counts["right checks repeated"] += 1
            if answer.status and answer.body.get("verification_id") != pending.id and not self._is_late(pending):
                self._ledger.lost_proofs.append(f"{pending.id} {pending.phone}: repeated, answered '{answer.word}'")
        if self._random.random() < _SENT_AGAIN:
            other = await self._check(pending, heard.heard, by_phone=False)
            self._ledger.note_right(self._right(pending, heard, *other))

    async def _hear(self, pending: Pending) -> VirtualCall | None:
        deadline = time.monotonic() + _HEARD_WITHIN
        while time.monotonic() < deadline:
            calls = [call for call in self.calls(pending.phone) if call.call_id in pending.calls]
            if calls and all(call.heard for call in calls):
                self._ledger.counts["codes heard"] += 1
                return self._random.choice(calls)
            await asyncio.sleep(0.15)
        return None

    async def _dial(self, pending: Pending, number: str) -> None:
        await asyncio.sleep(_DIALS_AFTER)
        began = time.monotonic()
        self._network.dial(phone=pending.phone, number=number)
        self._ledger.counts["numbers dialled"] += 1
        deadline = began + _CONFIRMED_WITHIN
        while True:
            _, key, answer = await self._check(pending, None)
            if answer.body.get("status") != "pending" or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.3)
        self._ledger.note_right(self._right(pending, None, {}, key, replace(answer, began=began)))

    async def _guess(self, pending: Pending) -> None:
        """Send wrong codes until the verification is locked; a reverse call has no code to guess."""
        if pending.channel == Channel.REVERSE_CALL:
            return
        heard = await self._hear(pending)
        code = (heard and heard.heard) or ("1234" if pending.channel == Channel.FLASH_CALL else "123456")
        for _ in range(_MOST_GUESSES):
            _, _, answer = await self._check(pending, _another(code))
            if answer.body.get("status") == "locked" or answer.problem == "verification-locked":
                self._ledger.note_end(pending.id, pending.phone, "locked")
                return
            if answer.status != HTTPStatus.OK:
                self._note_odd(pending, answer)
                return

    async def _cancel(self, pending: Pending) -> None:
        async def send() -> Answer:
            return await self._client.send("POST", f"/verify/{pending.id}/cancel")

        answer = await self._insist(await send(), send, until=pending.good_until)
        if answer.body.get("status") == "canceled":
            self._ledger.note_end(pending.id, pending.phone, "canceled")
        else:
            self._note_odd(pending, answer)

    async def _check(
        self,
        pending: Pending,
        code: str | None,
        *,
        key: str | None = None,
        by_phone: bool | None = None,
        insists: bool = True,
    ) -> tuple[Mapping[str, Any], str | None, Answer]:
        """Check by id or by phone, with a key or without; return the request and the last response."""
        if by_phone is None:
            by_phone = code is not None and self._random.random() < 1 / 3  # without a code, only the id is proof
        which = {"phone": pending.phone, "purpose": pending.purpose} if by_phone else {"verification_id": pending.id}
        key = key or (str(uuid.uuid4()) if self._random.random() < _WITH_KEY else None)
        self._ledger.counts["checks"] += 1
        body = {**which, **({"code": code} if code else {})}
        return body, key, await self._send_check(body, key, until=pending.good_until if insists else 0)

    async def _send_check(self, body: Mapping[str, Any], key: str | None, *, until: float) -> Answer:
        async def send() -> Answer:
            return await self._client.send("POST", "/verify/check", body, key=key)

        return await self._insist(await send(), send, until=until)

    def _right(
        self, pending: Pending, heard: VirtualCall | None, body: Mapping[str, Any], key: str | None, answer: Answer
    ) -> Right:
        """Return the record of the response to a right code, or to a reverse call that was made."""
        is_verified = answer.body.get("verified") is True
        return Right(
            verification_id=pending.id,
            phone=pending.phone,
            began=answer.began,
            request=key or str(uuid.uuid4()),
            answer=f"{answer.word} by {'phone' if 'phone' in body else 'id'}, {heard.channel if heard else 'dialled'}",
            verified_id=answer.body["verification_id"] if is_verified else None,
            has_key=key is not None,
            is_unsure=answer.was_cut_off,
            excused=self._excuse(pending, heard, answer, can_be_repeated=key is not None or "phone" not in body),
        )

    def _excuse(
        self, pending: Pending, heard: VirtualCall | None, answer: Answer, *, can_be_repeated: bool
    ) -> str | None:
        """Return why a right code need not verify, or None."""
        if not answer.status:
            return "no answer"
        if self._is_late(pending):
            return "too late"
        if heard and heard.call_id in self._network.chosen and pending.calls[heard.call_id] != "initiated":
            return "the provider chose the code, and its answer was lost"
        if answer.problem == "verification-locked" and pending.wrong_attempts >= pending.checks:
            return "locked by wrong codes whose answers were lost"
        if (
            answer.was_cut_off and not can_be_repeated
        ):  # it may have verified, and a repetition is compared with other codes
            return "by phone and without a key, and an answer was lost"
        return None

    def _is_late(self, pending: Pending) -> bool:
        return time.monotonic() > pending.good_until

    def _note_odd(self, pending: Pending, answer: Answer) -> None:
        self._ledger.of(pending.id, pending.phone).is_unsure = True
        self._ledger.counts[f"too late or cut off: {answer.word}"] += 1


def _best(answers: list[Answer]) -> Answer:
    return next((answer for answer in answers if answer.status == HTTPStatus.CREATED), answers[0])


def _outcome(answer: Answer) -> str:
    match answer.status:
        case 0:
            return "unanswered"
        case HTTPStatus.CREATED:
            return str(answer.body["call"]["status"])
        case HTTPStatus.BAD_GATEWAY | HTTPStatus.SERVICE_UNAVAILABLE if answer.problem != STORE_UNAVAILABLE:
            return "refused"
        case _:
            return answer.word


def _another(code: str) -> str:
    return f"{(int(code) + 1) % 10 ** len(code):0{len(code)}}"


def _draw(source: random.Random, weights: Mapping[Any, int]) -> Any:  # noqa: ANN401 - any weighted value
    return source.choices(list(weights), list(weights.values()))[0]
