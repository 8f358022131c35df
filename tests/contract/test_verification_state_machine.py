"""Any sequence of starts, checks, cancels, call updates and time has the same results in Redis and in the reference."""

import asyncio
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, reject, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from app.store.verifications import RedisVerificationStore
from app.verification.channels import Channel
from app.verification.errors import VerificationError
from app.verification.model import (
    CallState,
    CallStatus,
    CheckOutcome,
    CheckPassed,
    Consent,
    Locked,
    Verification,
    Waiting,
    WrongCode,
)
from app.verification.phone import Phone
from app.verification.policy import DAY, HOUR, Limit
from app.verification.ports import CallId, CallUpdate, CodeCheck, NewCall, VerificationStore
from tests.ageing import age
from tests.fakes import ReferenceStore
from tests.policies import make_policy

PHONES = (Phone("+79001234567"), Phone("+79007654321"))
CODES = [bytes([number]) * 32 for number in range(3)]
POLICY = make_policy(
    code_length=4,
    checks=3,
    flash_call_checks=2,
    calls_per_phone=(Limit("calls_per_phone_hour", 4, HOUR), Limit("calls_per_phone_day", 6, DAY)),
    failed_checks_per_phone=Limit("failed_checks_per_phone", 5, DAY),
    failed_checks_per_client=Limit("failed_checks_per_client", 6, timedelta(minutes=10)),
)

phones = st.sampled_from(PHONES)
purposes = st.sampled_from(["login", "password_reset"])
codes = st.sampled_from(CODES)
channels = st.sampled_from([Channel.VOICE, Channel.VOICE, Channel.FLASH_CALL])
addresses = st.sampled_from([None, "192.0.2.1", "192.0.2.2"])
retries = st.sampled_from([None, "d1", "d2"])
references = st.sampled_from([None, None, "order-1", "order-2"])
consents = st.sampled_from([None, Consent("2", datetime(2026, 1, 31, 9, tzinfo=UTC))])
ages = st.integers(0, 5)  # which verification, counted from the latest

steps = st.one_of(
    st.tuples(st.just("start"), phones, purposes, codes, channels, addresses, references, consents),
    st.tuples(st.just("start"), phones, purposes, codes, channels, addresses, references, consents),
    st.tuples(st.just("resend"), ages, codes, channels, references, consents),
    st.tuples(st.just("refused"), phones, purposes, codes, channels),
    st.tuples(st.just("check_by_id"), ages, codes, addresses, retries),
    st.tuples(st.just("check_by_phone"), phones, purposes, codes, addresses, retries),
    st.tuples(st.just("read"), ages),
    st.tuples(st.just("cancel"), ages),
    st.tuples(st.just("record"), ages, st.sampled_from(CallStatus)),
    st.tuples(st.just("refund"), ages),
    st.tuples(st.just("wait"), st.sampled_from([1, 30, 60, 120, 299, 300, 360, 3600, 86400])),
)


def new_call(
    phone: Phone,
    purpose: str,
    code: bytes,
    channel: Channel,
    *,
    resend_of: str | None = None,
    address: str | None = None,
    reference: str | None = None,
    consent: Consent | None = None,
) -> NewCall:
    return NewCall(
        client="shop",
        phone=phone,
        purpose=purpose,
        channel=channel,
        code_digest=code,
        code_length=4,
        checks=POLICY.checks_of(channel),
        resend_of=resend_of,
        address=address,
        reference=reference,
        consent=consent,
    )


def code_check(code: bytes, address: str | None, retry: str | None) -> CodeCheck:
    return CodeCheck(client="shop", candidates=[code], length=4, address=address, retry_digest=retry)


@dataclass
class Actor:
    """Run steps on a store, and return the results with ids replaced by their order of appearance."""

    store: VerificationStore
    known: list[Verification] = field(default_factory=list)

    async def play(self, step: tuple[object, ...]) -> object:
        name, *arguments = step
        try:
            return self.normalize(await getattr(self, str(name))(*arguments))
        except VerificationError as error:
            return type(error).__name__, self.anonymous(vars(error))

    async def start(  # noqa: PLR0917 - the parts of a step
        self,
        phone: Phone,
        purpose: str,
        code: bytes,
        channel: Channel,
        address: str | None,
        reference: str | None,
        consent: Consent | None,
    ) -> Verification:
        call = new_call(phone, purpose, code, channel, address=address, reference=reference, consent=consent)
        return await self.place(call)

    async def resend(
        self, age: int, code: bytes, channel: Channel, reference: str | None, consent: Consent | None
    ) -> Verification:
        known = self.known[-1 - age % len(self.known)] if self.known else None
        phone, purpose = (known.phone, known.purpose) if known else (PHONES[0], "login")
        resend_of = self.id(age)
        return await self.place(
            new_call(phone, purpose, code, channel, resend_of=resend_of, reference=reference, consent=consent)
        )

    async def place(self, call: NewCall) -> Verification:
        preview = await self.store.preview_start(call, POLICY)
        verification = (await self.store.start(preview.call_id, call, POLICY)).verification
        self.known.append(verification)
        return verification

    async def refused(self, phone: Phone, purpose: str, code: bytes, channel: Channel) -> object:
        """Start and refund, as when the provider refuses the call."""
        call = new_call(phone, purpose, code, channel)
        preview = await self.store.preview_start(call, POLICY)
        await self.store.start(preview.call_id, call, POLICY)
        return await self.store.refund(preview.call_id, phone=phone, client="shop", policy=POLICY)

    async def check_by_id(self, age: int, code: bytes, address: str | None, retry: str | None) -> CheckOutcome:
        return await self.store.check_by_id(self.id(age), code_check(code, address, retry), POLICY)

    async def check_by_phone(
        self, phone: Phone, purpose: str, code: bytes, address: str | None, retry: str | None
    ) -> CheckOutcome:
        return await self.store.check_by_phone(phone, purpose, code_check(code, address, retry), POLICY)

    async def read(self, age: int) -> Verification:
        return await self.store.read(self.id(age), client="shop")

    async def cancel(self, age: int) -> Verification:
        return await self.store.cancel("shop", self.id(age))

    async def record(self, age: int, status: CallStatus) -> object:
        if not self.known:
            return None
        verification = self.known[-1 - age % len(self.known)]
        report = CallUpdate(state=CallState(status), ref="ref")
        has_ended = await self.store.record_call(verification, verification.calls[-1].call_number, report)
        return self.normalize(await self.store.read(verification.id, client="shop")), has_ended

    async def refund(self, age: int) -> object:
        if self.known:
            verification = self.known[-1 - age % len(self.known)]
            name = CallId(verification.id, verification.calls[-1].call_number)
            return await self.store.refund(name, phone=verification.phone, client="shop", policy=POLICY)
        return None

    def age(self, duration: timedelta) -> None:
        """Move the known verifications into the past, as ``age`` does in Redis."""
        self.known = [
            replace(
                verification,
                resend_at=verification.resend_at - duration,
                observed_at=verification.observed_at - duration,
            )
            for verification in self.known
            if verification.resend_at
        ]

    def id(self, age: int) -> str:
        return self.known[-1 - age % len(self.known)].id if self.known else "vrf_00000000000000000000000"

    def normalize(self, answer: object) -> object:
        match answer:
            case Verification():
                derived = (answer.status, answer.expires_in, answer.resend_in)
                calls = [(call.call_number, call.state, call.ref, call.channel) for call in answer.calls]
                shown = (answer.channel, answer.code_length)
                kept = (answer.calls_placed, answer.calls_left, answer.checks_left, calls, shown)
                return self.number(answer.id), derived, kept, answer.reference, answer.consent
            case CheckPassed() | WrongCode() | Waiting() | Locked():
                return type(answer), self.anonymous(asdict(answer))
        return answer

    def anonymous(self, facts: dict[str, object]) -> dict[str, object]:
        return {
            name: self.number(str(value)) if name == "verification_id" and value else value
            for name, value in facts.items()
        }

    def number(self, verification_id: str) -> int:
        ids = list(dict.fromkeys(verification.id for verification in self.known))
        return ids.index(verification_id) if verification_id in ids else len(ids)


@settings(max_examples=150)
@given(script=st.lists(steps, min_size=1, max_size=30))
async def test_redis_gives_the_same_results_as_the_reference_store(
    script: list[tuple[object, ...]], redis: Redis, store: RedisVerificationStore
) -> None:
    await redis.flushall()
    model = ReferenceStore()
    real_actor, model_actor = Actor(store), Actor(model)
    began = time.monotonic()
    for step in script:
        if step[0] == "wait":
            duration = timedelta(seconds=int(str(step[1])))
            model.advance(duration)
            await age(redis, duration)
            real_actor.age(duration)
            continue
        real, expected = await asyncio.gather(real_actor.play(step), model_actor.play(step))
        if real != expected and time.monotonic() - began > 0.9:
            reject()  # a busy machine: seconds have passed in Redis, and not in the model
        assert real == expected, (step, script)
    for key in await redis.keys():
        assert await redis.pttl(key) > 0, f"{key!r} has no TTL"
