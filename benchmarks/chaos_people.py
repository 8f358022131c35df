"""People under chaos: they start, hear, dial, type, mistype, ask again, call off, or forget about it."""

import asyncio
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import count
from typing import Any

from app.plusofon.sandbox import VirtualCall, VirtualNetwork
from app.verification.channel import Channel
from benchmarks.chaos_client import Answer, Client
from benchmarks.chaos_ledger import Ledger

# Random magic numbers and those of MTS, which no flash call reaches, are left out: chaos comes from elsewhere here.
_PREFIX = "+7902"
_PURPOSES = ("phone_verification", "login")
_CHANNELS = {Channel.VOICE: 40, Channel.FLASH_CALL: 20, Channel.REVERSE_CALL: 15, None: 25}
_MANNERS = {"right": 40, "mistyped": 15, "again": 15, "guess": 7, "cancel": 8, "forget": 15}
_SENT_TWICE = 0.1  # share of starts that are sent twice at once, with the same key
_HEARD_WITHIN = 4.0  # seconds
_DIALS_AFTER = 1.2  # seconds; longer than PLUSOFON_HOOK_DELAY_SECONDS
_CONFIRMED_WITHIN = 6.0
_MOST_GUESSES = 8


@dataclass(slots=True, kw_only=True)
class Pending:
    """A verification that a person is in.

    ``good_until``: what they heard first verifies until then at least. ``first_call``: the place of its first call
    among those of the phone.
    """

    id: str
    phone: str
    purpose: str
    channel: str | None
    dial: str | None
    good_until: float
    first_call: int


class People:
    """All people, who share nothing but the service and the network."""

    def __init__(
        self, client: Client, network: VirtualNetwork, ledger: Ledger, *, lifetime: float, cooldown: float
    ) -> None:
        self._client = client
        self._network = network
        self._ledger = ledger
        self._lifetime = lifetime
        self._cooldown = cooldown
        self._numbers = count(1_000_000)
        self._random = random.Random(7)  # noqa: S311 - the same people each time
        self.phones: set[str] = set()
        self.unanswered: set[str] = set()

    async def verify_one(self) -> None:
        """Have one person with a new phone go through a verification, in a manner of their own."""
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
                await asyncio.sleep(self._cooldown + 0.1)
                again = await self._start({**body, "channel": Channel.VOICE}) or pending
                if again.id == pending.id:  # else the first had expired by then
                    again = replace(again, good_until=pending.good_until, first_call=pending.first_call)
                await self._finish(again, mistypes=False)
            case "guess":
                await self._guess(pending)
            case "cancel":
                await self._cancel(pending)
            case "forget":
                pass
            case _:
                await self._finish(pending, mistypes=manner == "mistyped")

    def calls(self, phone: str) -> list[VirtualCall]:
        """List the calls that rang a phone. A reverse call rings nobody: it is a number that waits to be dialled."""
        return [call for call in self._network.calls_of(phone) if call.channel is not Channel.REVERSE_CALL]

    async def _start(self, body: Mapping[str, Any]) -> Pending | None:
        """Start, with one key for one wish: repeated where it was refused, or got no answer."""
        phone, key = body["phone"], str(uuid.uuid4())
        before, began = len(self.calls(phone)), time.monotonic()

        async def send() -> Answer:
            return await self._client.send("POST", "/verify/start", body, key=key)

        answers = await asyncio.gather(*(send() for _ in range(2 if self._random.random() < _SENT_TWICE else 1)))
        answer = _best(answers)
        if answer.status in {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE}:
            await asyncio.sleep(0.3)
            self._ledger.counts["refused, and asked again"] += 1
            answer = await send()
        self._ledger.note_start(phone, _outcome(answer), len(self.calls(phone)) - before)
        if len({one.body["verification_id"] for one in answers if one.status == HTTPStatus.CREATED}) > 1:
            self._ledger.placed_twice.append(f"{phone}: two verifications for one key")
        if answer.status == HTTPStatus.CREATED:
            self._ledger.note_created(answer.body["verification_id"], phone)
        elif answer.was_cut_off or any(one.was_cut_off for one in answers):
            self.unanswered.add(phone)
        # Refused because the worker that was at it died: there is a verification, and there may be a call.
        verification_id = answer.body.get("verification_id")
        if verification_id is None:
            return None
        self._ledger.of(verification_id, phone)
        return Pending(
            id=verification_id,
            phone=phone,
            purpose=body["purpose"],
            channel=answer.body.get("channel"),
            dial=answer.body.get("dial"),
            good_until=began + self._lifetime,
            first_call=before,
        )

    async def _finish(self, pending: Pending, *, mistypes: bool) -> None:
        """Do what it takes to be verified."""
        if pending.channel == Channel.REVERSE_CALL and pending.dial:
            await self._dial(pending, pending.dial)
            return
        heard = await self._hear(pending)
        if heard is None:
            self._ledger.counts["nothing heard"] += 1
            return
        if mistypes:
            answer = await self._check(pending, _another(heard))
            self._ledger.counts[f"mistyped: {answer.word}"] += 1
        # Any code of this verification that is still good, the first as well as the last.
        self._judge(pending, await self._check(pending, heard), f"code of {len(heard)} digits")

    async def _hear(self, pending: Pending) -> str | None:
        deadline = time.monotonic() + _HEARD_WITHIN
        while time.monotonic() < deadline:
            calls = self.calls(pending.phone)[pending.first_call :]
            if calls and all(call.heard for call in calls):
                self._ledger.counts["codes heard"] += 1
                return self._random.choice(calls).heard
            await asyncio.sleep(0.15)
        return None

    async def _dial(self, pending: Pending, number: str) -> None:
        await asyncio.sleep(_DIALS_AFTER)
        self._network.dial(phone=pending.phone, number=number)
        self._ledger.counts["numbers dialled"] += 1
        deadline = time.monotonic() + _CONFIRMED_WITHIN
        answer = await self._check(pending, None)
        while answer.body.get("status") == "pending" and time.monotonic() < deadline:
            await asyncio.sleep(0.3)
            answer = await self._check(pending, None)
        self._judge(pending, answer, "dialled number")

    async def _guess(self, pending: Pending) -> None:
        """Type wrong codes until it is locked; of a reverse call there is nothing to guess."""
        if pending.channel == Channel.REVERSE_CALL:
            return
        heard = await self._hear(pending) or ("1234" if pending.channel == Channel.FLASH_CALL else "123456")
        for _ in range(_MOST_GUESSES):
            answer = await self._check(pending, _another(heard))
            if answer.body.get("status") == "locked" or answer.problem == "verification-locked":
                self._ledger.note_end(pending.id, pending.phone, "locked")
                return
            if answer.status != HTTPStatus.OK:
                self._note_odd(pending, answer)
                return

    async def _cancel(self, pending: Pending) -> None:
        answer = await self._client.send("POST", f"/verify/{pending.id}/cancel")
        if answer.body.get("status") == "canceled":
            self._ledger.note_end(pending.id, pending.phone, "canceled")
        else:
            self._note_odd(pending, answer)

    async def _check(self, pending: Pending, code: str | None) -> Answer:
        by_phone = code is not None and self._random.random() < 1 / 3  # without a code, only the id is a proof
        which = {"phone": pending.phone, "purpose": pending.purpose} if by_phone else {"verification_id": pending.id}
        key = str(uuid.uuid4()) if self._random.random() < 1 / 2 else None
        self._ledger.counts["checks"] += 1
        body = {**which, **({"code": code} if code else {})}
        answer = await self._client.send("POST", "/verify/check", body, key=key)
        while answer.status == HTTPStatus.SERVICE_UNAVAILABLE and time.monotonic() < pending.good_until:
            self._ledger.counts[f"check: {answer.word}"] += 1
            await asyncio.sleep(0.5)
            answer = await self._client.send("POST", "/verify/check", body, key=key)
        return answer

    def _judge(self, pending: Pending, answer: Answer, what: str) -> None:
        """Take the answer to a right code: it verifies, unless it came too late, or not at all."""
        if answer.body.get("verified"):
            self._ledger.note_end(pending.id, pending.phone, "verified")
        elif answer.was_cut_off and answer.problem == "verification-already-used":
            self._ledger.note_end(pending.id, pending.phone, "verified")  # the answer that said so died with a worker
            self._ledger.counts["verified, as the answer to a repetition tells"] += 1
        elif time.monotonic() > pending.good_until or not answer.status:
            self._note_odd(pending, answer)
        else:
            self._ledger.not_verified.append(f"{pending.id} {pending.phone}: {what}, answered '{answer.word}'")

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
        case HTTPStatus.BAD_GATEWAY | HTTPStatus.SERVICE_UNAVAILABLE:
            return "refused"
        case _:
            return answer.word


def _another(code: str) -> str:
    return f"{(int(code) + 1) % 10 ** len(code):0{len(code)}}"


def _draw(source: random.Random, weights: Mapping[Any, int]) -> Any:  # noqa: ANN401 - whatever is weighted
    return source.choices(list(weights), list(weights.values()))[0]
