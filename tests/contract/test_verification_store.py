"""The contract of every VerificationStore: one suite over the reference store and over Redis."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from app.store.verifications import RedisVerificationStore
from app.verification.channels import Channel
from app.verification.errors import (
    CallCooldown,
    CodeNotExpected,
    CodeRequired,
    CodeTooShortOrLong,
    RateLimited,
    VerificationAlreadyCanceled,
    VerificationAlreadyUsed,
    VerificationLocked,
    VerificationNotFound,
)
from app.verification.model import (
    CallState,
    CallStatus,
    CheckOutcome,
    CheckPassed,
    Consent,
    Locked,
    Status,
    Verification,
    Waiting,
    WrongCode,
)
from app.verification.phone import Phone
from app.verification.policy import DAY, HOUR, Limit, Policy
from app.verification.ports import CallHistory, CallId, CallUpdate, CodeCheck, Confirmation, NewCall, VerificationStore
from tests.ageing import age
from tests.fakes import ReferenceStore
from tests.outcomes import expect
from tests.policies import make_policy
from tests.starting import record

PHONE = Phone("+79001234567")
POLICY = make_policy()
LIFETIME = POLICY.lifetime
DIAL = Phone("+78005550100")
RIGHT, SECOND, THIRD, WRONG = (bytes([number]) * 32 for number in range(1, 5))


def _update(status: CallStatus, word: str | None = None, **facts: Any) -> CallUpdate:  # noqa: ANN401 - its fields
    return CallUpdate(state=CallState(status, word), **{"ref": "ref-1", **facts})


@dataclass
class StoreHarness:
    """A store, and methods that start, check and refund verifications and let time pass."""

    store: VerificationStore
    advance: Callable[[timedelta], Awaitable[None]]
    policy: Policy = POLICY
    lengths: dict[bytes, int] = field(default_factory=dict)

    async def start(
        self,
        code: bytes = RIGHT,
        *,
        client: str = "shop",
        purpose: str = "login",
        phone: Phone = PHONE,
        channel: Channel = Channel.VOICE,
        policy: Policy = POLICY,
        test: bool = False,
        resend_of: Verification | None = None,
        address: str | None = None,
        reference: str | None = None,
        consent: Consent | None = None,
    ) -> Verification:
        length = POLICY.code_length_of(channel)
        self.lengths[code] = self.lengths[WRONG] = length or 6
        call = NewCall(
            client=client,
            phone=phone,
            purpose=purpose,
            channel=channel,
            code_digest=code if length else None,
            code_length=length,
            checks=POLICY.checks_of(channel),
            resend_of=resend_of.id if resend_of else None,
            address=address,
            test=test,
            reference=reference,
            consent=consent,
        )
        preview = await self.store.preview_start(call, policy)
        return (await self.store.start(preview.call_id, call, policy)).verification

    async def history(self, client: str = "shop") -> CallHistory:
        call = NewCall(
            client=client,
            phone=PHONE,
            purpose="login",
            channel=Channel.VOICE,
            code_digest=None,
            code_length=None,
            checks=5,
            test=True,  # without limits
        )
        return (await self.store.preview_start(call, POLICY)).history

    async def refund(self, verification: Verification, number: int) -> bool:
        name = CallId(verification.id, number)
        return await self.store.refund(name, phone=verification.phone, client=verification.client, policy=POLICY)

    async def check(
        self, verification_id: str, candidates: list[bytes], *, client: str = "shop", address: str | None = None
    ) -> CheckOutcome:
        return await self.store.check_by_id(
            verification_id, self.code_check(candidates, client=client, address=address), self.policy
        )

    async def check_phone(
        self, candidates: list[bytes], *, client: str = "shop", purpose: str = "login"
    ) -> CheckOutcome:
        return await self.store.check_by_phone(PHONE, purpose, self.code_check(candidates, client=client), self.policy)

    def code_check(self, candidates: list[bytes], *, client: str = "shop", address: str | None = None) -> CodeCheck:
        """Return a check of a code with the length of the given one, a wrong code with that of the latest."""
        lengths = {self.lengths.get(candidate, 6) for candidate in candidates}
        return CodeCheck(client=client, candidates=candidates, length=max(lengths, default=0), address=address)

    async def again(self, first: Verification, code: bytes, *, channel: Channel = Channel.VOICE) -> Verification:
        """Start a resend once the cooldown is over, without recording its call."""
        await self.advance(timedelta(seconds=120))
        return await self.start(code, channel=channel, resend_of=first)

    async def resend(self, first: Verification, code: bytes, *, channel: Channel = Channel.VOICE) -> Verification:
        """Start a resend once the cooldown is over, and record its call as placed."""
        return await self.place(await self.again(first, code, channel=channel))

    async def place(self, verification: Verification) -> Verification:
        """Record the latest call as placed."""
        report = _update(CallStatus.INITIATED)
        return await record(self.store, verification, verification.calls[-1].call_number, report)

    async def reverse_call(self) -> Verification:
        verification = await self.start(channel=Channel.REVERSE_CALL)
        report = _update(CallStatus.INITIATED, dial=DIAL)
        return await record(self.store, verification, 1, report)

    async def dial(self, verification: Verification, *, ref: str = "ref-1", caller: Phone = PHONE) -> Confirmation:
        return await self.store.confirm(verification, 1, ref=ref, caller=caller, policy=POLICY)

    async def lock(self, verification: Verification) -> None:
        for _ in range(verification.checks_left):
            await self.check(verification.id, [WRONG])


@pytest.fixture(params=["reference", pytest.param("redis", marks=pytest.mark.uses_redis)])
def harness(request: pytest.FixtureRequest) -> StoreHarness:
    if request.param == "reference":
        fake = ReferenceStore()

        async def advance(duration: timedelta) -> None:
            fake.advance(duration)

        return StoreHarness(fake, advance)
    redis: Redis = request.getfixturevalue("redis")
    store: RedisVerificationStore = request.getfixturevalue("store")
    return StoreHarness(store, lambda duration: age(redis, duration))


async def test_a_start_makes_a_pending_verification(harness: StoreHarness) -> None:
    verification = await harness.start()

    assert verification.status is Status.PENDING
    assert verification.phone == PHONE
    assert (verification.client, verification.purpose, verification.code_length) == ("shop", "login", 6)
    assert (verification.calls_placed, verification.calls_left, verification.checks_left) == (1, 2, 5)
    assert [call.state.status for call in verification.calls] == [CallStatus.INITIATED]
    assert (verification.expires_in, verification.resend_in) == (300, 60)


async def test_the_correct_code_verifies_once(harness: StoreHarness) -> None:
    verification = await harness.start()

    result = expect(CheckPassed, await harness.check(verification.id, [RIGHT]))

    assert (result.status, result.phone, result.purpose) == (Status.VERIFIED, PHONE, "login")
    with pytest.raises(VerificationAlreadyUsed):
        await harness.check(verification.id, [RIGHT])


async def test_a_check_by_phone_finds_the_same_verification(harness: StoreHarness) -> None:
    verification = await harness.start()

    wrong = expect(WrongCode, await harness.check_phone([WRONG]))
    right = await harness.check_phone([RIGHT])

    assert (wrong.verification_id, wrong.checks_left) == (verification.id, 4)
    assert (right.verification_id, right.status) == (verification.id, Status.VERIFIED)


async def test_a_code_digested_with_an_older_key_verifies(harness: StoreHarness) -> None:
    verification = await harness.start(RIGHT)

    result = await harness.check(verification.id, [WRONG, RIGHT])

    assert result.status is Status.VERIFIED


async def test_candidates_of_several_keys_count_as_one_check(harness: StoreHarness) -> None:
    verification = await harness.start(RIGHT)

    result = expect(WrongCode, await harness.check(verification.id, [WRONG, SECOND]))

    assert result.checks_left == 4


REFERENCE = 'Заказ № 7 | "a\\b" 100%:'
CONSENT = Consent("версия 2", datetime(2026, 1, 31, 8, 59, 30, 123_000, UTC))
LATER = Consent("3", datetime(2026, 1, 31, 9, 1, tzinfo=UTC))


async def test_a_verification_keeps_its_reference_and_consent(harness: StoreHarness) -> None:
    started = await harness.start(reference=REFERENCE, consent=CONSENT)
    await harness.place(started)

    read = await harness.store.read(started.id, client="shop")
    canceled = await harness.store.cancel("shop", started.id)

    for verification in (started, read, canceled):
        assert (verification.reference, verification.consent) == (REFERENCE, CONSENT)


async def test_a_verification_without_a_reference_and_consent_has_none(harness: StoreHarness) -> None:
    verification = await harness.start()

    assert (verification.reference, verification.consent) == (None, None)
    assert (await harness.check(verification.id, [WRONG])).reference is None
    assert (await harness.check(verification.id, [RIGHT])).reference is None


async def test_every_outcome_of_a_check_has_the_reference(harness: StoreHarness) -> None:
    locked = await harness.start(reference=REFERENCE)
    wrong = [await harness.check(locked.id, [WRONG]) for _ in range(5)]
    await harness.advance(timedelta(seconds=120))
    await harness.start(SECOND, reference="second")
    right = await harness.check_phone([SECOND])
    await harness.advance(timedelta(seconds=300))
    reverse = await harness.start(channel=Channel.REVERSE_CALL, reference="third")
    waiting = await harness.check(reverse.id, [])

    assert [outcome.reference for outcome in wrong] == [REFERENCE] * 5
    assert (wrong[-1].status, right.status) == (Status.LOCKED, Status.VERIFIED)
    assert (right.reference, waiting.reference) == ("second", "third")


@pytest.mark.parametrize("given", [None, REFERENCE])
async def test_a_resend_keeps_the_reference_and_the_latest_consent(harness: StoreHarness, given: str | None) -> None:
    first = await harness.place(await harness.start(reference=REFERENCE, consent=CONSENT))
    await harness.advance(timedelta(seconds=120))
    without = await harness.place(await harness.start(SECOND, resend_of=first, reference=given))
    await harness.advance(timedelta(seconds=120))
    with_one = await harness.start(THIRD, resend_of=first, reference=given, consent=LATER)

    assert (without.reference, without.consent) == (REFERENCE, CONSENT)
    assert (with_one.reference, with_one.consent) == (REFERENCE, LATER)
    await harness.refund(with_one, 3)
    assert (await harness.store.read(first.id, client="shop")).reference == REFERENCE


async def test_a_reverse_call_in_place_of_another_keeps_reference_and_consent(harness: StoreHarness) -> None:
    """It is another verification, for the same request of the client."""
    first = await harness.place(await harness.start(reference=REFERENCE, consent=CONSENT))

    reverse = await harness.again(first, b"", channel=Channel.REVERSE_CALL)

    assert reverse.id != first.id
    assert (reverse.reference, reverse.consent) == (REFERENCE, CONSENT)


async def test_a_reference_cannot_be_given_to_a_verification_later(harness: StoreHarness) -> None:
    first = await harness.place(await harness.start())
    await harness.advance(timedelta(seconds=120))

    with pytest.raises(VerificationNotFound):
        await harness.start(SECOND, resend_of=first, reference=REFERENCE)


@pytest.mark.parametrize(
    ("client", "purpose"), [("other", "login"), ("shop", "password_reset")], ids=["client", "purpose"]
)
async def test_a_check_by_phone_finds_only_verifications_of_the_same_client_and_purpose(
    harness: StoreHarness, client: str, purpose: str
) -> None:
    await harness.start()

    with pytest.raises(VerificationNotFound):
        await harness.check_phone([RIGHT], client=client, purpose=purpose)


async def test_a_client_sees_only_its_own_verifications(harness: StoreHarness) -> None:
    verification = await harness.start()

    for attempt in (
        harness.check(verification.id, [RIGHT], client="other"),
        harness.store.read(verification.id, client="other"),
        harness.store.cancel("other", verification.id),
    ):
        with pytest.raises(VerificationNotFound):
            await attempt
    assert (await harness.check(verification.id, [RIGHT])).status is Status.VERIFIED


@pytest.mark.parametrize("verification_id", ["vrf_00000000000000000000000", "vrf_", "", "x" * 64, "vrf_{}:*"])
async def test_an_unknown_or_malformed_id_is_not_found(harness: StoreHarness, verification_id: str) -> None:
    for attempt in (
        harness.check(verification_id, [RIGHT]),
        harness.store.read(verification_id, client="shop"),
        harness.store.cancel("shop", verification_id),
    ):
        with pytest.raises(VerificationNotFound):
            await attempt


async def test_wrong_codes_are_counted_and_the_last_one_locks_the_verification(harness: StoreHarness) -> None:
    verification = await harness.start()

    results = [await harness.check(verification.id, [WRONG]) for _ in range(5)]

    assert [expect(WrongCode, result).checks_left for result in results[:4]] == [4, 3, 2, 1]
    assert [result.status for result in results] == [*[Status.PENDING] * 4, Status.LOCKED]
    assert expect(Locked, results[-1]).retry_after == 60  # when another can be started
    with pytest.raises(VerificationLocked):
        await harness.check(verification.id, [RIGHT])


async def test_the_correct_code_verifies_with_the_last_check(harness: StoreHarness) -> None:
    verification = await harness.start()
    for _ in range(4):
        await harness.check(verification.id, [WRONG])

    assert (await harness.check(verification.id, [RIGHT])).status is Status.VERIFIED


async def test_a_wrong_code_does_not_change_the_expiry(harness: StoreHarness) -> None:
    verification = await harness.start()
    await harness.advance(timedelta(seconds=200))

    await harness.check(verification.id, [WRONG])

    reading = await harness.store.read(verification.id, client="shop")
    assert reading.expires_in <= 100


async def test_another_verification_can_be_started_after_one_is_locked(harness: StoreHarness) -> None:
    """Otherwise an attacker could lock out the owner of the phone."""
    verification = await harness.start()
    await harness.lock(verification)
    with pytest.raises(VerificationLocked) as caught:
        await harness.check(verification.id, [RIGHT])
    assert 1 <= caught.value.retry_after <= 60
    await harness.advance(timedelta(seconds=caught.value.retry_after))

    other = await harness.start(SECOND)

    assert (other.checks_left, other.id == verification.id) == (5, False)
    assert (await harness.check(other.id, [SECOND])).status is Status.VERIFIED


@pytest.mark.parametrize("ending", ["verified", "locked", "canceled", "expired"])
async def test_only_a_pending_verification_can_be_resent(harness: StoreHarness, ending: str) -> None:
    verification = await harness.start()
    match ending:
        case "verified":
            await harness.check(verification.id, [RIGHT])
        case "locked":
            await harness.lock(verification)
        case "canceled":
            await harness.store.cancel("shop", verification.id)
    await harness.advance(LIFETIME if ending == "expired" else timedelta(seconds=120))

    with pytest.raises(VerificationNotFound):
        await harness.start(SECOND, resend_of=verification)


@pytest.mark.parametrize(
    "other",
    [
        {"client": "bank"},
        {"purpose": "password_reset"},
        {"phone": Phone("+79007654321")},
        {"phone": Phone("+79007654321"), "purpose": "password_reset"},
        {"test": True},
        {"reference": "order-2"},
    ],
    ids=str,
)
async def test_a_resend_needs_the_same_client_phone_and_purpose(harness: StoreHarness, other: dict[str, Any]) -> None:
    """A resend of another client's verification is not found, and does not change it."""
    verification = await harness.start()
    await harness.advance(timedelta(seconds=120))

    with pytest.raises(VerificationNotFound):
        await harness.start(SECOND, resend_of=verification, **other)

    after = await harness.store.read(verification.id, client="shop")
    assert (after.calls_placed, after.checks_left, after.resend_in) == (1, 5, 0)


@pytest.mark.parametrize("verification_id", ["", "vrf_00000000000000000000000", "vrf_", "x" * 64, "vrf_{}:*", "7"])
async def test_a_resend_of_an_unknown_or_malformed_id_is_not_found(harness: StoreHarness, verification_id: str) -> None:
    verification = await harness.start()
    await harness.advance(timedelta(seconds=120))

    with pytest.raises(VerificationNotFound):
        await harness.start(SECOND, resend_of=replace(verification, id=verification_id))


async def test_every_start_without_an_id_makes_a_new_verification(harness: StoreHarness) -> None:
    first = await harness.start(RIGHT)
    await harness.lock(first)
    await harness.advance(timedelta(seconds=120))
    second = await harness.start(SECOND)
    await harness.advance(timedelta(seconds=120))
    third = await harness.start(THIRD)

    assert len({first.id, second.id, third.id}) == 3
    assert [(it.calls_placed, it.calls_left, it.checks_left) for it in (second, third)] == [(1, 2, 5)] * 2
    with pytest.raises(VerificationLocked):
        await harness.check(first.id, [RIGHT])
    assert (await harness.check(second.id, [THIRD])).status is Status.PENDING
    assert (await harness.check(third.id, [THIRD])).status is Status.VERIFIED
    assert (await harness.check(second.id, [SECOND])).status is Status.VERIFIED


@pytest.mark.parametrize("code", [RIGHT, SECOND, THIRD], ids=["first", "second", "third"])
async def test_a_check_by_phone_accepts_the_code_of_any_pending_verification(
    harness: StoreHarness, code: bytes
) -> None:
    ids = {}
    for own, cooldown in ((RIGHT, 60), (SECOND, 120), (THIRD, 0)):
        ids[own] = (await harness.start(own)).id
        await harness.advance(timedelta(seconds=cooldown))

    result = await harness.check_phone([code])

    assert (result.verification_id, result.status) == (ids[code], Status.VERIFIED)
    for other in ids.keys() - {code}:
        assert (await harness.store.read(ids[other], client="shop")).status is Status.PENDING


async def test_a_wrong_check_by_phone_counts_for_the_latest_verification_and_once_per_live_code(
    harness: StoreHarness,
) -> None:
    first = await harness.start(RIGHT)
    await harness.advance(timedelta(seconds=120))
    second = await harness.start(SECOND)

    wrong = expect(WrongCode, await harness.check_phone([WRONG]))

    assert (wrong.verification_id, wrong.checks_left, wrong.quotas[0].remaining) == (second.id, 4, 48)
    assert (await harness.store.read(first.id, client="shop")).checks_left == 5
    for _ in range(3):
        await harness.check_phone([WRONG])
    assert (await harness.check_phone([WRONG])).status is Status.LOCKED
    assert (await harness.check_phone([RIGHT])).verification_id == first.id


async def test_a_check_by_phone_without_pending_verifications_raises_the_outcome_of_the_latest(
    harness: StoreHarness,
) -> None:
    await harness.start(RIGHT)
    await harness.check_phone([RIGHT])
    with pytest.raises(VerificationAlreadyUsed):
        await harness.check_phone([RIGHT])
    await harness.advance(timedelta(seconds=120))
    canceled = await harness.start(SECOND)
    await harness.store.cancel("shop", canceled.id)

    with pytest.raises(VerificationAlreadyCanceled):
        await harness.check_phone([SECOND])


async def test_one_address_can_use_at_most_a_third_of_a_phones_failed_checks(harness: StoreHarness) -> None:
    """So an attacker cannot lock out the owner of the phone, whose own wrong codes still count."""
    harness.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 48, DAY))
    for _ in range(4):
        stranger = await harness.start(policy=harness.policy)
        for _ in range(4):
            await harness.check(stranger.id, [WRONG], address="192.0.2.66")
        await harness.advance(LIFETIME)

    with pytest.raises(RateLimited) as start:  # its code could not be checked from this address
        await harness.start(address="192.0.2.66", policy=harness.policy)
    own = await harness.start(address="192.0.2.1", policy=harness.policy)
    with pytest.raises(RateLimited) as check:
        await harness.check(own.id, [RIGHT], address="192.0.2.66")

    assert start.value.limit == check.value.limit == "failed_checks_per_phone_and_address"
    assert 85_000 <= check.value.retry_after <= 86_400
    assert (await harness.check(own.id, [WRONG], address="192.0.2.1")).quotas[0].remaining == 31
    assert (await harness.check(own.id, [WRONG])).quotas[0].remaining == 30  # checks without an address have no share
    assert (await harness.check(own.id, [RIGHT], address="192.0.2.1")).status is Status.VERIFIED


async def test_the_share_of_an_address_covers_all_checks_of_one_verification(harness: StoreHarness) -> None:
    harness.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 18, DAY))
    verification = await harness.start(RIGHT)
    await harness.resend(verification, SECOND)
    await harness.resend(verification, THIRD)

    results = [await harness.check(verification.id, [WRONG], address="192.0.2.1") for _ in range(5)]

    assert [result.quotas[0].remaining for result in results] == [15, 12, 9, 6, 3]
    assert results[-1].status is Status.LOCKED


async def test_of_250_concurrent_checks_of_one_address_five_per_verification_are_counted(harness: StoreHarness) -> None:
    harness.policy = replace(
        POLICY,
        checks=50,
        failed_checks_per_phone=Limit("failed_checks_per_phone", 500, DAY),
        failed_checks_per_address=Limit("failed_checks_per_address", 500, HOUR),  # of a cluster acquired by all at once
    )
    ids = [
        (await harness.start(address=f"192.0.2.{it}", policy=replace(POLICY, cooldowns=(timedelta(),)))).id
        for it in range(5)
    ]

    checks = [harness.check(name, [WRONG], address="192.0.2.66") for name in ids for _ in range(50)]
    results = await asyncio.gather(*checks, return_exceptions=True)

    assert (
        sum(isinstance(result, CheckOutcome) for result in results) == 25
    )  # five of each verification, all below the share


async def test_a_repeated_correct_check_returns_the_same_result(harness: StoreHarness) -> None:
    """The response may have been lost. Only the same request and client get the result again."""
    verification = await harness.start()
    code_check = replace(harness.code_check([RIGHT]), retry_digest="d1")
    first = expect(CheckPassed, await harness.store.check_by_id(verification.id, code_check, POLICY))

    for _ in range(2):
        again = await harness.store.check_by_id(verification.id, code_check, POLICY)
        assert again == replace(first, quotas=(), is_repeated=True)
    assert not first.is_repeated
    for other in (None, "d2"):
        with pytest.raises(VerificationAlreadyUsed):
            await harness.store.check_by_id(verification.id, replace(code_check, retry_digest=other), POLICY)
    with pytest.raises(VerificationNotFound):
        await harness.store.check_by_id(verification.id, replace(code_check, client="bank"), POLICY)
    await harness.advance(LIFETIME)
    with pytest.raises(VerificationNotFound):
        await harness.store.check_by_id(verification.id, code_check, POLICY)


async def test_a_repeated_correct_check_by_phone_returns_the_same_verification(harness: StoreHarness) -> None:
    first = await harness.start(RIGHT)
    code_check = replace(harness.code_check([RIGHT]), retry_digest="d1")
    await harness.store.check_by_phone(PHONE, "login", code_check, POLICY)
    await harness.advance(timedelta(seconds=120))
    await harness.start(SECOND)

    again = expect(CheckPassed, await harness.store.check_by_phone(PHONE, "login", code_check, POLICY))

    assert (again.verification_id, again.status, again.is_repeated) == (first.id, Status.VERIFIED, True)


async def test_a_repeated_wrong_check_is_counted_again(harness: StoreHarness) -> None:
    verification = await harness.start()
    code_check = replace(harness.code_check([WRONG]), retry_digest="d1")

    results = [await harness.store.check_by_id(verification.id, code_check, POLICY) for _ in range(2)]

    assert [expect(WrongCode, result).checks_left for result in results] == [4, 3]


async def test_a_verification_is_not_found_after_its_lifetime(harness: StoreHarness) -> None:
    verification = await harness.start()
    await harness.advance(LIFETIME)

    for attempt in (
        harness.check(verification.id, [RIGHT]),
        harness.check_phone([RIGHT]),
        harness.store.read(verification.id, client="shop"),
        harness.store.record_call(verification, 1, _update(CallStatus.COMPLETED)),
    ):
        with pytest.raises(VerificationNotFound):
            await attempt


async def test_a_start_within_the_cooldown_is_refused_and_changes_nothing(harness: StoreHarness) -> None:
    verification = await harness.start()

    await harness.place(verification)
    for named in (None, verification):
        with pytest.raises(CallCooldown) as caught:
            await harness.start(SECOND, resend_of=named)
        assert caught.value.verification_id == (named and named.id)
        assert 50 <= caught.value.retry_after <= 60

    reading = await harness.store.read(verification.id, client="shop")
    assert reading.calls_placed == 1


async def test_the_cooldown_of_a_phone_applies_to_all_clients_and_purposes(harness: StoreHarness) -> None:
    await harness.start()

    for client, purpose in (("shop", "password_reset"), ("other", "login")):
        with pytest.raises(CallCooldown) as caught:
            await harness.start(client=client, purpose=purpose)
        assert caught.value.verification_id is None


async def test_a_resend_keeps_the_id_the_counted_checks_and_the_older_codes(harness: StoreHarness) -> None:
    first = await harness.start(RIGHT)
    await harness.check(first.id, [WRONG])

    second = await harness.resend(first, SECOND)

    assert second.id == first.id
    assert (second.calls_placed, second.calls_left, second.checks_left) == (2, 1, 4)
    assert (await harness.check(first.id, [RIGHT])).status is Status.VERIFIED


async def test_each_code_has_its_own_lifetime(harness: StoreHarness) -> None:
    verification = await harness.start(RIGHT)
    await harness.resend(verification, SECOND)
    await harness.advance(LIFETIME - timedelta(seconds=60))

    expired = await harness.check(verification.id, [RIGHT])
    alive = await harness.check(verification.id, [SECOND])

    assert (expired.status, alive.status) == (Status.PENDING, Status.VERIFIED)


async def test_the_cooldown_grows_with_every_call_to_a_phone(harness: StoreHarness) -> None:
    policy = replace(POLICY, calls=5)
    waits = []
    for _ in range(4):
        verification = await harness.start(policy=policy)
        assert verification.resend_in is not None
        waits.append(verification.resend_in)
        await harness.advance(timedelta(seconds=verification.resend_in))

    assert waits == [60, 120, 300, 300]


async def test_canceling_and_starting_again_does_not_shorten_the_cooldown(harness: StoreHarness) -> None:
    first = await harness.start()
    await harness.store.cancel("shop", first.id)

    with pytest.raises(CallCooldown) as caught:
        await harness.start()
    assert caught.value.verification_id is None

    await harness.advance(timedelta(seconds=60))
    second = await harness.start()
    assert second.id != first.id
    assert second.resend_in == 120


async def test_the_cooldown_is_reset_only_after_the_longest_cooldown(harness: StoreHarness) -> None:
    await harness.start()
    await harness.advance(timedelta(seconds=340))
    assert (await harness.start()).resend_in == 120

    await harness.advance(timedelta(seconds=420))
    assert (await harness.start()).resend_in == 60


async def test_calls_of_a_verification_are_limited(harness: StoreHarness) -> None:
    first = await harness.start()
    await harness.resend(first, SECOND)
    third = await harness.resend(first, THIRD)
    assert (third.calls_left, third.resend_in) == (0, None)

    with pytest.raises(RateLimited) as caught:
        await harness.start(resend_of=first)

    assert caught.value.limit == "calls_per_verification"
    assert 280 <= caught.value.retry_after <= 300
    await harness.advance(timedelta(seconds=caught.value.retry_after))
    assert (await harness.start()).id != third.id


async def test_after_success_a_start_makes_a_new_verification(harness: StoreHarness) -> None:
    first = await harness.start()
    await harness.check(first.id, [RIGHT])
    await harness.advance(timedelta(seconds=60))

    second = await harness.start(SECOND)

    assert second.id != first.id
    assert second.checks_left == 5
    with pytest.raises(VerificationAlreadyUsed):
        await harness.check(first.id, [RIGHT])


async def test_a_canceled_verification_cannot_be_verified(harness: StoreHarness) -> None:
    verification = await harness.start()

    canceled = await harness.store.cancel("shop", verification.id)
    again = await harness.store.cancel("shop", verification.id)

    assert canceled.status is again.status is Status.CANCELED
    assert canceled.resend_in is None
    with pytest.raises(VerificationAlreadyCanceled):
        await harness.check(verification.id, [RIGHT])


async def test_a_verified_or_locked_verification_cannot_be_canceled(harness: StoreHarness) -> None:
    verified = await harness.start()
    await harness.check(verified.id, [RIGHT])
    with pytest.raises(VerificationAlreadyUsed):
        await harness.store.cancel("shop", verified.id)

    locked = await harness.start(phone=Phone("+79007654321"))
    await harness.lock(locked)
    with pytest.raises(VerificationLocked):
        await harness.store.cancel("shop", locked.id)


async def test_a_recorded_call_is_returned(harness: StoreHarness) -> None:
    verification = await harness.start()

    recorded = await record(
        harness.store, verification, 1, CallUpdate(state=CallState(CallStatus.RINGING, "rerouted"), ref="ref-1")
    )

    call = recorded.latest_call
    assert call is not None
    assert (call.call_number, call.ref, call.state) == (1, "ref-1", CallState(CallStatus.RINGING, "rerouted"))


async def test_a_final_call_status_does_not_change(harness: StoreHarness) -> None:
    verification = await harness.start()
    await harness.store.record_call(verification, 1, _update(CallStatus.BUSY))

    after = await record(harness.store, verification, 1, _update(CallStatus.RINGING))

    assert [call.state.status for call in after.calls] == [CallStatus.BUSY]


async def test_a_call_status_never_goes_back_to_an_earlier_stage(harness: StoreHarness) -> None:
    verification = await harness.start()
    await harness.store.record_call(verification, 1, _update(CallStatus.ANSWERED))

    recorded = await record(harness.store, verification, 1, _update(CallStatus.RINGING))

    assert [call.state.status for call in recorded.calls] == [CallStatus.ANSWERED]


async def test_of_a_hundred_concurrent_final_updates_exactly_one_ends_the_call(harness: StoreHarness) -> None:
    verification = await harness.start()

    reports = [harness.store.record_call(verification, 1, _update(CallStatus.COMPLETED)) for _ in range(100)]

    assert sum(await asyncio.gather(*reports)) == 1


async def test_a_correct_code_marks_its_unconfirmed_call_as_answered(harness: StoreHarness) -> None:
    verification = await harness.start()
    await harness.store.record_call(verification, 1, _update(CallStatus.UNCONFIRMED, ref=None))

    await harness.check(verification.id, [RIGHT])

    read = await harness.store.read(verification.id, client="shop")
    assert [call.state.status for call in read.calls] == [CallStatus.ANSWERED]


async def test_a_code_chosen_by_the_provider_replaces_ours(harness: StoreHarness) -> None:
    verification = await harness.start(channel=Channel.FLASH_CALL)
    report = _update(CallStatus.INITIATED, code_digest=SECOND, code_length=4)
    await harness.store.record_call(verification, 1, report)
    harness.lengths[SECOND] = 4

    assert (await harness.check(verification.id, [RIGHT])).status is Status.PENDING
    assert (await harness.check(verification.id, [SECOND])).status is Status.VERIFIED


async def test_after_a_refund_only_the_code_of_the_next_call_is_valid(harness: StoreHarness) -> None:
    refused = await harness.start()
    await harness.refund(refused, 1)

    placed = await harness.start(SECOND, channel=Channel.FLASH_CALL)

    assert (placed.channel, placed.code_length, placed.checks_left) == (Channel.FLASH_CALL, 4, 3)
    assert (placed.calls_placed, placed.calls_left, placed.resend_in) == (1, 2, 60)
    harness.lengths[RIGHT] = 4
    assert (await harness.check(placed.id, [RIGHT])).status is Status.PENDING
    assert (await harness.check(placed.id, [SECOND])).status is Status.VERIFIED


async def test_a_resend_on_a_channel_with_fewer_checks_leaves_at_least_one_check(harness: StoreHarness) -> None:
    verification = await harness.start()
    for _ in range(4):
        await harness.check(verification.id, [WRONG])

    again = await harness.again(verification, SECOND, channel=Channel.FLASH_CALL)
    assert again.checks_left == 1
    again = await harness.place(again)

    assert again.checks_left == 1
    assert (await harness.check(verification.id, [SECOND])).status is Status.VERIFIED


async def test_the_history_has_the_operator_and_the_calls_of_pending_verifications(harness: StoreHarness) -> None:
    verification = await harness.start()
    await harness.store.record_call(verification, 1, _update(CallStatus.NO_ANSWER, operator="mts"))
    await harness.resend(verification, SECOND, channel=Channel.FLASH_CALL)

    history = await harness.history("shop")

    assert history.operator == "mts"
    assert list(history.calls) == [
        (Channel.VOICE, CallStatus.NO_ANSWER),
        (Channel.FLASH_CALL, CallStatus.INITIATED),
    ]
    assert not (await harness.history("other")).calls
    await harness.store.cancel("shop", verification.id)
    assert not (await harness.history("shop")).calls


async def test_a_reverse_call_verifies_without_a_code_once_confirmed(harness: StoreHarness) -> None:
    verification = await harness.reverse_call()
    assert (await harness.check(verification.id, [])).status is Status.PENDING
    await harness.advance(timedelta(seconds=5))

    assert await harness.dial(verification) is Confirmation.CONFIRMED
    assert await harness.dial(verification) is Confirmation.CONFIRMED_BEFORE

    result = expect(CheckPassed, await harness.check(verification.id, []))
    assert (result.status, result.phone) == (Status.VERIFIED, PHONE)
    with pytest.raises(VerificationAlreadyUsed):
        await harness.check(verification.id, [])
    assert await harness.dial(verification) is Confirmation.CONFIRMED_BEFORE


async def test_of_a_hundred_concurrent_checks_of_a_reverse_call_exactly_one_verifies(harness: StoreHarness) -> None:
    verification = await harness.reverse_call()
    await harness.advance(timedelta(seconds=5))
    confirmations = await asyncio.gather(*(harness.dial(verification) for _ in range(100)))
    assert confirmations.count(Confirmation.CONFIRMED) == 1

    results = await asyncio.gather(*(harness.check(verification.id, []) for _ in range(100)), return_exceptions=True)

    assert sum(isinstance(result, CheckOutcome) for result in results) == 1


async def test_a_callback_confirms_only_the_call_with_its_reference_and_caller(harness: StoreHarness) -> None:
    verification = await harness.reverse_call()
    assert await harness.dial(verification) is Confirmation.TOO_EARLY
    await harness.advance(timedelta(seconds=5))

    assert await harness.dial(verification, ref="another") is Confirmation.NOT_FOUND
    assert await harness.dial(verification, caller=DIAL) is Confirmation.NOT_THE_CALLER
    assert (
        await harness.store.confirm(verification, 2, ref="ref-1", caller=PHONE, policy=POLICY) is Confirmation.NOT_FOUND
    )
    assert (await harness.check(verification.id, [])).status is Status.PENDING


async def test_a_callback_does_not_confirm_a_call_with_a_code(harness: StoreHarness) -> None:
    verification = await harness.start()
    await harness.store.record_call(verification, 1, _update(CallStatus.INITIATED))
    await harness.advance(timedelta(seconds=5))

    assert await harness.dial(verification) is Confirmation.NOT_FOUND
    with pytest.raises(CodeRequired):
        await harness.check(verification.id, [])


async def test_a_callback_does_not_confirm_a_canceled_reverse_call(harness: StoreHarness) -> None:
    verification = await harness.reverse_call()
    await harness.advance(timedelta(seconds=5))
    await harness.store.cancel("shop", verification.id)

    assert await harness.dial(verification) is Confirmation.NOT_FOUND


async def test_a_confirmed_reverse_call_does_not_verify_after_its_lifetime(harness: StoreHarness) -> None:
    verification = await harness.reverse_call()
    await harness.advance(timedelta(seconds=250))
    assert await harness.dial(verification) is Confirmation.CONFIRMED
    await harness.advance(timedelta(seconds=60))

    with pytest.raises(VerificationNotFound):
        await harness.check(verification.id, [])


async def test_the_id_of_a_reverse_call_is_not_revealed_by_other_requests(harness: StoreHarness) -> None:
    """The id alone identifies the session: another session could check with it once the person has dialled."""
    reverse = await harness.reverse_call()

    with pytest.raises(CallCooldown) as refused:
        await harness.start()
    with pytest.raises(VerificationNotFound):
        await harness.check_phone([WRONG])
    await harness.advance(timedelta(seconds=120))
    coded = await harness.start(RIGHT)

    assert refused.value.verification_id is None
    assert coded.id != reverse.id
    assert (await harness.check_phone([WRONG])).verification_id == coded.id


async def test_a_verification_with_a_code_and_a_reverse_call_are_independent(harness: StoreHarness) -> None:
    coded = await harness.start(RIGHT)
    await harness.advance(timedelta(seconds=60))
    reverse = await harness.reverse_call()
    again = await harness.resend(coded, SECOND)

    assert again.id == coded.id != reverse.id
    assert (coded.calls_left, reverse.calls_left, again.calls_left) == (2, 0, 1)
    assert reverse.resend_in is None
    assert await harness.dial(reverse) is Confirmation.CONFIRMED
    with pytest.raises(CodeRequired):
        await harness.check(coded.id, [])
    assert (await harness.check(reverse.id, [])).status is Status.VERIFIED
    assert (await harness.check(coded.id, [RIGHT])).status is Status.VERIFIED


async def test_a_phone_has_at_most_one_pending_reverse_call_over_all_clients(harness: StoreHarness) -> None:
    """Otherwise one dialled call could confirm another, because both may have the same number to dial."""
    first = await harness.reverse_call()
    await harness.advance(timedelta(seconds=120))

    with pytest.raises(CallCooldown) as refused:
        await harness.start(client="bank", purpose="password_reset", channel=Channel.REVERSE_CALL)

    assert refused.value.verification_id is None
    assert 160 <= refused.value.retry_after <= 180
    await harness.store.cancel("shop", first.id)
    second = await harness.start(client="bank", channel=Channel.REVERSE_CALL)
    await harness.refund(second, 1)
    third = await harness.reverse_call()
    await harness.advance(timedelta(seconds=5))
    await harness.dial(third)
    await harness.check(third.id, [])
    await harness.advance(timedelta(seconds=295))
    assert (await harness.reverse_call()).status is Status.PENDING
    await harness.advance(LIFETIME)
    assert (await harness.reverse_call()).status is Status.PENDING


async def test_a_reverse_call_always_has_its_own_verification(harness: StoreHarness) -> None:
    """A resend as a reverse call makes a new verification, and so does a resend of a reverse call."""
    coded = await harness.start(RIGHT)
    await harness.advance(timedelta(seconds=60))
    reverse = await harness.start(channel=Channel.REVERSE_CALL, resend_of=coded)
    await harness.advance(timedelta(seconds=120))
    other = await harness.start(SECOND, resend_of=reverse)

    assert len({coded.id, reverse.id, other.id}) == 3
    assert (await harness.check(coded.id, [RIGHT])).status is Status.VERIFIED


async def test_of_fifty_concurrent_reverse_calls_exactly_one_is_started(harness: StoreHarness) -> None:
    policy = replace(POLICY, cooldowns=(timedelta(),))
    starts = [
        harness.start(client=f"client-{number}", channel=Channel.REVERSE_CALL, policy=policy) for number in range(50)
    ]

    started = await asyncio.gather(*starts, return_exceptions=True)

    assert sum(isinstance(it, CallCooldown) for it in started) == 49


async def test_a_code_of_another_length_is_rejected_and_not_counted(harness: StoreHarness) -> None:
    verification = await harness.start()

    for length in (4, 5):
        with pytest.raises(CodeTooShortOrLong) as refused:
            await harness.store.check_by_id(
                verification.id, CodeCheck(client="shop", candidates=[WRONG], length=length), POLICY
            )
        assert refused.value.lengths == {6}

    assert expect(WrongCode, await harness.check(verification.id, [WRONG])).checks_left == 4
    again = await harness.resend(verification, SECOND, channel=Channel.FLASH_CALL)
    assert (await harness.check(again.id, [WRONG])).status is Status.PENDING
    assert (await harness.check(again.id, [RIGHT])).status is Status.VERIFIED


async def test_a_code_for_a_reverse_call_is_rejected_and_not_counted(harness: StoreHarness) -> None:
    verification = await harness.reverse_call()

    with pytest.raises(CodeNotExpected):
        await harness.check(verification.id, [WRONG])

    assert expect(Waiting, await harness.check(verification.id, [])).checks_left == verification.checks_left


async def test_refunding_a_call_of_another_channel_leaves_the_pending_verification_unchanged(
    harness: StoreHarness,
) -> None:
    coded = await harness.start(RIGHT)
    for channel in (Channel.REVERSE_CALL, Channel.FLASH_CALL):
        refused = await harness.again(coded, SECOND, channel=channel)
        await harness.refund(refused, refused.calls[-1].call_number)

    after = await harness.store.read(coded.id, client="shop")
    assert (after.channel, after.code_length, after.checks_left) == (Channel.VOICE, 6, 5)
    assert (after.calls_placed, after.calls_left) == (1, 2)
    assert (await harness.start(THIRD, resend_of=coded)).id == coded.id
    assert (await harness.check_phone([RIGHT])).status is Status.VERIFIED


async def test_refunding_a_call_leaves_a_pending_reverse_call_unchanged(harness: StoreHarness) -> None:
    reverse = await harness.reverse_call()
    await harness.advance(timedelta(seconds=120))
    refused = await harness.start(SECOND)
    await harness.refund(refused, 1)

    assert await harness.dial(reverse) is Confirmation.CONFIRMED
    assert (await harness.check(reverse.id, [])).status is Status.VERIFIED


async def test_wrong_codes_stay_counted_after_a_refund(harness: StoreHarness) -> None:
    coded = await harness.start(RIGHT)
    await harness.check(coded.id, [WRONG])
    refused = await harness.again(coded, SECOND, channel=Channel.FLASH_CALL)
    await harness.check(coded.id, [WRONG])
    await harness.refund(refused, 2)

    harness.lengths[WRONG] = 6
    assert expect(WrongCode, await harness.check(coded.id, [WRONG])).checks_left == 2


async def test_a_call_that_is_not_placed_yet_does_not_reduce_the_checks_left(harness: StoreHarness) -> None:
    """A start that the provider refuses must not lock a verification after three wrong codes."""
    coded = await harness.start(RIGHT)
    for _ in range(3):
        await harness.check(coded.id, [WRONG])
    refused = await harness.again(coded, SECOND, channel=Channel.FLASH_CALL)
    harness.lengths[WRONG] = 6
    assert (await harness.check(coded.id, [WRONG])).status is Status.PENDING
    await harness.refund(refused, 2)

    assert (await harness.store.read(coded.id, client="shop")).checks_left == 1
    assert (await harness.check(coded.id, [RIGHT])).status is Status.VERIFIED


async def test_refunding_a_call_of_a_locked_verification_does_not_unlock_it(harness: StoreHarness) -> None:
    coded = await harness.start(RIGHT)
    refused = await harness.again(coded, SECOND, channel=Channel.FLASH_CALL)
    for _ in range(5):
        await harness.check(coded.id, [WRONG])

    await harness.refund(refused, 2)

    after = await harness.store.read(refused.id, client="shop")
    assert (after.status, after.checks_left) == (Status.LOCKED, 0)


async def test_a_pending_reverse_call_is_in_the_history_of_every_client(harness: StoreHarness) -> None:
    reverse = await harness.reverse_call()
    history = await harness.history("bank")
    assert list(history.calls) == [(Channel.REVERSE_CALL, CallStatus.INITIATED)]

    await harness.store.cancel("shop", reverse.id)

    assert not (await harness.history("bank")).calls


async def test_each_change_increases_the_version(redis: Redis, store: RedisVerificationStore) -> None:
    harness = StoreHarness(store, lambda duration: age(redis, duration))
    verification = await harness.start()
    versions = [verification.version]
    versions.append((await record(harness.store, verification, 1, _update(CallStatus.RINGING))).version)
    versions.append((await record(harness.store, verification, 1, _update(CallStatus.RINGING, ref=None))).version)
    await harness.check(verification.id, [WRONG])
    versions.append((await harness.store.read(verification.id, client="shop")).version)
    versions.append((await harness.store.cancel("shop", verification.id)).version)
    versions.append((await harness.store.cancel("shop", verification.id)).version)

    assert versions == [0, 1, 1, 2, 3, 3]


async def test_a_verification_fails_when_all_its_calls_failed(harness: StoreHarness) -> None:
    policy = replace(POLICY, calls=1)
    verification = await harness.start(policy=policy)

    after = await record(harness.store, verification, 1, _update(CallStatus.NO_ANSWER))

    assert after.status is Status.FAILED


async def test_refunding_the_only_call_deletes_the_verification(harness: StoreHarness) -> None:
    verification = await harness.start()

    await harness.refund(verification, 1)

    with pytest.raises(VerificationNotFound):
        await harness.store.read(verification.id, client="shop")
    again = await harness.start()
    assert (again.calls_placed, again.resend_in) == (1, 60)


async def test_refunding_a_resend_leaves_the_first_call_unchanged(harness: StoreHarness) -> None:
    first = await harness.start(RIGHT)
    second = await harness.again(first, SECOND)

    await harness.refund(second, 2)

    after = await harness.store.read(first.id, client="shop")
    assert (after.calls_placed, after.calls_left, after.resend_in) == (1, 2, 0)
    assert after.expires_at <= after.created_at + LIFETIME
    assert [call.call_number for call in after.calls] == [1]
    assert (await harness.check(first.id, [SECOND])).status is Status.PENDING
    assert (await harness.check(first.id, [RIGHT])).status is Status.VERIFIED


async def test_a_second_refund_changes_nothing_even_after_a_new_call(harness: StoreHarness) -> None:
    first = await harness.start(RIGHT)
    second = await harness.again(first, SECOND)
    await harness.refund(second, 2)
    third = await harness.start(THIRD, resend_of=first)

    await harness.refund(second, 2)

    after = await harness.store.read(third.id, client="shop")
    assert (after.calls_placed, after.calls_left) == (2, 1)
    with pytest.raises(CallCooldown):
        await harness.start()
    assert (await harness.check(third.id, [THIRD])).status is Status.VERIFIED


async def test_failed_checks_of_a_phone_stay_counted_after_a_refund(harness: StoreHarness) -> None:
    """Otherwise an attacker could guess without limit while the provider refuses every call."""
    harness.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 5, DAY))
    for _ in range(5):
        verification = await harness.start(policy=harness.policy)
        await harness.check(verification.id, [WRONG])
        await harness.refund(verification, 1)

    with pytest.raises(RateLimited, match="failed_checks_per_phone"):
        await harness.start(policy=harness.policy)


async def test_a_refunded_start_leaves_the_phone_unchanged(harness: StoreHarness) -> None:
    """Cooldown, calls and the latest verification are as if the start had not happened."""
    first = await harness.start()
    await harness.place(first)
    await harness.advance(timedelta(seconds=100))
    for _ in range(5):
        await harness.refund(await harness.start(SECOND), 1)
    await harness.refund(await harness.start(SECOND, resend_of=first), 2)

    again = await harness.start(SECOND)

    assert again.resend_in == 120
    assert (await harness.check_phone([RIGHT])).verification_id == first.id


async def test_a_refund_after_success_leaves_the_verification_verified(harness: StoreHarness) -> None:
    first = await harness.start(RIGHT)
    second = await harness.again(first, SECOND)
    await harness.check(first.id, [RIGHT])

    await harness.refund(second, 2)

    assert (await harness.store.read(first.id, client="shop")).status is Status.VERIFIED


async def test_of_a_hundred_concurrent_correct_checks_exactly_one_verifies(harness: StoreHarness) -> None:
    verification = await harness.start()

    checks = [harness.check(verification.id, [RIGHT]) for _ in range(100)]
    results = await asyncio.gather(*checks, return_exceptions=True)

    refused = [result for result in results if isinstance(result, VerificationAlreadyUsed)]
    assert (len(refused), len(results)) == (99, 100)


async def test_of_a_hundred_concurrent_wrong_checks_exactly_five_are_counted(harness: StoreHarness) -> None:
    verification = await harness.start()

    checks = [harness.check(verification.id, [WRONG]) for _ in range(100)]
    results = await asyncio.gather(*checks, return_exceptions=True)

    assert sum(isinstance(result, VerificationLocked) for result in results) == 95


async def test_of_a_hundred_refunds_at_once_one_undoes_the_call(harness: StoreHarness) -> None:
    first = await harness.place(await harness.start())
    second = await harness.again(first, SECOND)

    assert sum(await asyncio.gather(*(harness.refund(second, 2) for _ in range(100)))) == 1
    assert (await harness.store.read(first.id, client="shop")).calls_left == 2


async def test_of_a_hundred_cancellations_at_once_one_changes_it(harness: StoreHarness) -> None:
    before = await harness.place(await harness.start())

    canceled = await asyncio.gather(*(harness.store.cancel("shop", before.id) for _ in range(100)))

    assert {(it.status, it.version - before.version) for it in canceled} <= {(Status.CANCELED, 0), (Status.CANCELED, 1)}


async def test_of_fifty_concurrent_starts_exactly_one_succeeds(harness: StoreHarness) -> None:
    results = await asyncio.gather(*[harness.start() for _ in range(50)], return_exceptions=True)

    assert sum(isinstance(result, Verification) for result in results) == 1
    assert sum(isinstance(result, CallCooldown) for result in results) == 49


async def test_calls_to_a_phone_are_limited_per_hour_and_day(harness: StoreHarness) -> None:
    """The limit counts calls of all clients, purposes and verifications."""
    policy = replace(
        POLICY,
        cooldowns=(timedelta(),),
        calls=100,
        calls_per_phone=(Limit("calls_per_phone_hour", 2, HOUR), Limit("calls_per_phone_day", 3, DAY)),
    )
    await harness.start(policy=policy)
    await harness.start(policy=policy, client="bank")
    with pytest.raises(RateLimited) as hourly:
        await harness.start(policy=policy, purpose="password_reset")
    assert hourly.value.limit == "calls_per_phone_hour"
    assert 3590 <= hourly.value.retry_after <= 3600

    await harness.advance(HOUR)
    await harness.start(policy=policy)
    with pytest.raises(RateLimited) as daily:
        await harness.start(policy=policy)
    assert daily.value.limit == "calls_per_phone_day"
    assert 82_790 <= daily.value.retry_after <= 82_800

    await harness.advance(timedelta(seconds=daily.value.retry_after))
    await harness.start(policy=policy)


async def test_a_refunded_call_does_not_count_for_the_limit(harness: StoreHarness) -> None:
    policy = replace(POLICY, calls_per_phone=(Limit("calls_per_phone_hour", 1, HOUR),))
    verification = await harness.start(policy=policy)
    await harness.refund(verification, 1)

    await harness.start(policy=policy)


async def test_failed_checks_of_a_phone_are_limited_over_all_its_verifications(harness: StoreHarness) -> None:
    harness.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 7, DAY))
    first = await harness.start()
    await harness.lock(first)
    await harness.advance(LIFETIME)
    second = await harness.start()
    await harness.check(second.id, [WRONG])
    await harness.check_phone([WRONG])

    for refused in (harness.check(second.id, [RIGHT]), harness.check_phone([RIGHT])):
        with pytest.raises(RateLimited) as caught:
            await refused
        assert caught.value.limit == "failed_checks_per_phone"
    await harness.advance(timedelta(seconds=120))
    with pytest.raises(RateLimited, match="failed_checks_per_phone"):  # its code could not be checked
        await harness.start(policy=harness.policy)

    await harness.advance(DAY)
    third = await harness.start(policy=harness.policy)
    assert (await harness.check(third.id, [RIGHT])).status is Status.VERIFIED


async def test_correct_checks_are_not_counted_as_failed(harness: StoreHarness) -> None:
    harness.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 1, DAY))
    for _ in range(3):
        verification = await harness.start()
        assert (await harness.check(verification.id, [RIGHT])).status is Status.VERIFIED
        await harness.advance(LIFETIME)


async def test_a_failed_check_counts_for_the_phone_once_per_live_code(harness: StoreHarness) -> None:
    """Each live code is another chance to guess correctly, so three calls must not triple the chances."""
    harness.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 5, DAY))
    verification = await harness.start()
    assert (await harness.check(verification.id, [WRONG])).quotas[0].remaining == 4
    await harness.resend(verification, SECOND)

    assert (await harness.check(verification.id, [WRONG])).quotas[0].remaining == 2
    result = expect(WrongCode, await harness.check(verification.id, [WRONG]))
    assert (result.quotas[0].remaining, result.checks_left) == (0, 2)
    with pytest.raises(RateLimited, match="failed_checks_per_phone"):
        await harness.check(verification.id, [RIGHT])


async def test_a_quota_of_failed_checks_never_becomes_negative(harness: StoreHarness) -> None:
    harness.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 1, DAY))
    verification = await harness.start()
    await harness.resend(verification, SECOND)

    assert (await harness.check(verification.id, [WRONG])).quotas[0].remaining == 0


async def test_failed_checks_of_an_address_and_a_client_are_limited_over_all_phones(harness: StoreHarness) -> None:
    """One guess for each of many phones is an attack as well."""
    minutes = timedelta(minutes=10)
    harness.policy = replace(
        POLICY,
        failed_checks_per_address=Limit("failed_checks_per_address", 2, minutes),
        failed_checks_per_client=Limit("failed_checks_per_client", 3, minutes),
    )
    ids = [(await harness.start(phone=Phone(f"+7900123456{number}"))).id for number in range(6)]
    for name in ids[:2]:
        await harness.check(name, [WRONG], address="192.0.2.1")
    with pytest.raises(RateLimited) as caught:
        await harness.check(ids[2], [RIGHT], address="192.0.2.1")
    assert caught.value.limit == "failed_checks_per_address"

    await harness.check(ids[3], [WRONG], address="192.0.2.2")
    with pytest.raises(RateLimited) as caught:
        await harness.check(ids[4], [RIGHT], address="192.0.2.3")
    assert caught.value.limit == "failed_checks_per_client"

    refused = await harness.store.read(ids[4], client="shop")
    assert (refused.status, refused.checks_left) == (Status.PENDING, 5)


async def test_a_test_number_has_no_cooldown_and_counts_for_no_limit(harness: StoreHarness) -> None:
    once = Limit("failed_checks_per_phone", 1, DAY)
    harness.policy = replace(
        POLICY, calls_per_phone=(Limit("calls_per_phone_hour", 1, HOUR),), failed_checks_per_phone=once
    )
    ids = set()
    for _ in range(5):
        verification = await harness.start(test=True, policy=harness.policy)
        assert verification.test
        ids.add(verification.id)
        await harness.check(verification.id, [WRONG])
        result = expect(CheckPassed, await harness.check(verification.id, [RIGHT]))
        assert (result.status, result.test) == (Status.VERIFIED, True)
    assert len(ids) == 5


async def test_quotas_have_the_remaining_count_of_each_limit(harness: StoreHarness) -> None:
    call = NewCall(
        client="shop", phone=PHONE, purpose="login", channel=Channel.VOICE, code_digest=RIGHT, code_length=6, checks=5
    )
    preview = await harness.store.preview_start(call, POLICY)
    started = await harness.store.start(preview.call_id, call, POLICY)
    wrong = await harness.check(started.verification.id, [WRONG], address="192.0.2.1")

    assert [(quota.limit.name, quota.remaining) for quota in started.quotas] == [
        ("calls_per_phone_hour", 4),
        ("calls_per_phone_day", 9),
    ]
    assert [(quota.limit.name, quota.remaining) for quota in wrong.quotas] == [
        ("failed_checks_per_phone", 49),
        ("failed_checks_per_client", 999),
        ("failed_checks_per_address", 99),
    ]


async def test_a_check_is_refused_when_the_phones_limit_has_no_room_for_every_live_code(harness: StoreHarness) -> None:
    """With three live codes a check counts three times, so a limit of four has no room for a second check."""
    harness.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 4, DAY))
    verification = await harness.start(RIGHT)
    await harness.resend(verification, SECOND)
    await harness.resend(verification, THIRD)

    assert expect(WrongCode, await harness.check(verification.id, [WRONG])).checks_left == 4
    with pytest.raises(RateLimited, match="failed_checks_per_phone"):
        await harness.check(verification.id, [RIGHT])


async def test_a_former_test_number_starts_a_new_verification(harness: StoreHarness) -> None:
    test = await harness.start(test=True)

    ordinary = await harness.start(SECOND)

    assert ordinary.id != test.id
    assert not ordinary.test
    assert (await harness.check(ordinary.id, [RIGHT])).status is Status.PENDING


async def test_of_two_concurrent_resends_the_refused_one_does_not_refund_the_other(harness: StoreHarness) -> None:
    """The preview gave both of them the same call number."""
    policy = replace(POLICY, cooldowns=(timedelta(),))
    first = await harness.place(await harness.start(policy=policy))
    second = NewCall(
        client="shop",
        phone=PHONE,
        purpose="login",
        channel=Channel.VOICE,
        code_digest=SECOND,
        code_length=6,
        checks=5,
        resend_of=first.id,
        token="winner",
    )
    name = (await harness.store.preview_start(second, policy)).call_id
    placed = (await harness.store.start(name, second, policy)).verification

    with pytest.raises(CallCooldown):
        await harness.store.start(name, replace(second, token="loser"), policy)
    undone = await harness.store.refund(name, phone=PHONE, client="shop", policy=policy, token="loser")
    await harness.place(placed)
    late = await harness.store.refund(name, phone=PHONE, client="shop", policy=policy, token="winner")

    assert (name, undone, late) == (CallId(first.id, 2), False, False)
    assert (await harness.store.read(first.id, client="shop")).calls_placed == 2
    assert (await harness.check(first.id, [SECOND])).status is Status.VERIFIED


async def test_retry_after_is_short_until_the_call_is_placed(harness: StoreHarness) -> None:
    """The provider may refuse. Once the call is placed or its timeout is over, the full cooldown applies."""
    asked = await harness.start()
    with pytest.raises(CallCooldown) as meanwhile:
        await harness.start(SECOND, purpose="password_reset")
    await harness.place(asked)
    with pytest.raises(CallCooldown) as after:
        await harness.start(SECOND, purpose="password_reset")
    other = Phone("+79007654321")
    await harness.start(phone=other)
    await harness.advance(timedelta(seconds=20))
    with pytest.raises(CallCooldown) as late:
        await harness.start(phone=other)

    assert meanwhile.value.retry_after == 1
    assert 55 <= after.value.retry_after <= 60
    assert 35 <= late.value.retry_after <= 40


async def test_retry_after_stays_short_if_an_earlier_call_is_recorded_late(harness: StoreHarness) -> None:
    earlier = await harness.start()
    await harness.advance(timedelta(seconds=60))
    await harness.start(SECOND, purpose="password_reset")
    await harness.place(earlier)

    with pytest.raises(CallCooldown) as meanwhile:
        await harness.start()

    assert meanwhile.value.retry_after == 1


async def test_refunded_calls_of_a_verification_are_limited(harness: StoreHarness) -> None:
    first = await harness.place(await harness.start(policy=replace(POLICY, cooldowns=(timedelta(),))))
    policy = replace(POLICY, cooldowns=(timedelta(),))
    for number in range(2, 101):
        await harness.refund(await harness.start(SECOND, resend_of=first, policy=policy), number)

    with pytest.raises(RateLimited, match="calls_per_verification"):
        await harness.start(SECOND, resend_of=first, policy=policy)
    assert (await harness.check(first.id, [RIGHT])).status is Status.VERIFIED
