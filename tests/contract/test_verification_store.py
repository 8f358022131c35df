"""The contract of every VerificationStore: one suite over the reference store and over Redis."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from app.store.verifications import RedisVerificationStore
from app.verification.channel import Channel
from app.verification.errors import (
    CallCooldown,
    CodeNotExpected,
    CodeRequired,
    CodeTooShortOrLong,
    RateLimited,
    VerificationAlreadyUsed,
    VerificationCanceled,
    VerificationLocked,
    VerificationNotFound,
)
from app.verification.model import CallState, CallStatus, CheckResult, Status, Verification
from app.verification.phone import Phone
from app.verification.policy import DAY, HOUR, Limit, Policy
from app.verification.ports import CallHistory, CallId, CallUpdate, CodeCheck, Confirmation, NewCall, VerificationStore
from tests.ageing import age
from tests.fakes import ReferenceStore

PHONE = Phone("+79001234567")
POLICY = Policy()
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
        )
        preview = await self.store.preview_start(call, policy)
        return (await self.store.start(preview.name, call, policy)).verification

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
    ) -> CheckResult:
        return await self.store.check_by_id(
            verification_id, self.guess(candidates, client=client, address=address), self.policy
        )

    async def check_phone(
        self, candidates: list[bytes], *, client: str = "shop", purpose: str = "login"
    ) -> CheckResult:
        return await self.store.check_by_phone(PHONE, purpose, self.guess(candidates, client=client), self.policy)

    def guess(self, candidates: list[bytes], *, client: str = "shop", address: str | None = None) -> CodeCheck:
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
        return (await self.store.record_call(verification, verification.calls[-1].call_number, report)).verification

    async def reverse_call(self) -> Verification:
        verification = await self.start(channel=Channel.REVERSE_CALL)
        report = _update(CallStatus.INITIATED, dial=DIAL)
        return (await self.store.record_call(verification, 1, report)).verification

    async def dial(self, verification: Verification, *, ref: str = "ref-1", caller: Phone = PHONE) -> Confirmation:
        return await self.store.confirm(verification, 1, ref=ref, caller=caller, policy=POLICY)

    async def lock(self, verification: Verification) -> None:
        for _ in range(verification.checks_left):
            await self.check(verification.id, [WRONG])


@pytest.fixture(params=["reference", "redis"])
def world(request: pytest.FixtureRequest) -> StoreHarness:
    if request.param == "reference":
        fake = ReferenceStore()

        async def advance(duration: timedelta) -> None:
            fake.advance(duration)

        return StoreHarness(fake, advance)
    redis: Redis = request.getfixturevalue("redis")
    store: RedisVerificationStore = request.getfixturevalue("store")
    return StoreHarness(store, lambda duration: age(redis, duration))


async def test_a_start_makes_a_pending_verification(world: StoreHarness) -> None:
    verification = await world.start()

    assert verification.status is Status.PENDING
    assert verification.phone == PHONE
    assert (verification.client, verification.purpose, verification.code_length) == ("shop", "login", 6)
    assert (verification.calls_placed, verification.calls_left, verification.checks_left) == (1, 2, 5)
    assert [call.state.status for call in verification.calls] == [CallStatus.INITIATED]
    assert (verification.expires_in, verification.resend_in) == (300, 60)


async def test_the_correct_code_verifies_once(world: StoreHarness) -> None:
    verification = await world.start()

    result = await world.check(verification.id, [RIGHT])

    assert (result.status, result.phone, result.purpose) == (Status.VERIFIED, PHONE, "login")
    with pytest.raises(VerificationAlreadyUsed):
        await world.check(verification.id, [RIGHT])


async def test_a_check_by_phone_finds_the_same_verification(world: StoreHarness) -> None:
    verification = await world.start()

    wrong = await world.check_phone([WRONG])
    right = await world.check_phone([RIGHT])

    assert (wrong.verification_id, wrong.checks_left) == (verification.id, 4)
    assert (right.verification_id, right.status) == (verification.id, Status.VERIFIED)


async def test_a_code_digested_with_an_older_key_verifies(world: StoreHarness) -> None:
    verification = await world.start(RIGHT)

    result = await world.check(verification.id, [WRONG, RIGHT])

    assert result.status is Status.VERIFIED


async def test_candidates_of_several_keys_count_as_one_check(world: StoreHarness) -> None:
    verification = await world.start(RIGHT)

    result = await world.check(verification.id, [WRONG, SECOND])

    assert result.checks_left == 4


@pytest.mark.parametrize(
    ("client", "purpose"), [("other", "login"), ("shop", "password_reset")], ids=["client", "purpose"]
)
async def test_a_check_by_phone_finds_only_verifications_of_the_same_client_and_purpose(
    world: StoreHarness, client: str, purpose: str
) -> None:
    await world.start()

    with pytest.raises(VerificationNotFound):
        await world.check_phone([RIGHT], client=client, purpose=purpose)


async def test_a_client_sees_only_its_own_verifications(world: StoreHarness) -> None:
    verification = await world.start()

    for attempt in (
        world.check(verification.id, [RIGHT], client="other"),
        world.store.read(verification.id, client="other"),
        world.store.cancel("other", verification.id),
    ):
        with pytest.raises(VerificationNotFound):
            await attempt
    assert (await world.check(verification.id, [RIGHT])).status is Status.VERIFIED


@pytest.mark.parametrize("verification_id", ["vrf_00000000000000000000000", "vrf_", "", "x" * 64, "vrf_{}:*"])
async def test_an_unknown_or_malformed_id_is_not_found(world: StoreHarness, verification_id: str) -> None:
    for attempt in (
        world.check(verification_id, [RIGHT]),
        world.store.read(verification_id, client="shop"),
        world.store.cancel("shop", verification_id),
    ):
        with pytest.raises(VerificationNotFound):
            await attempt


async def test_wrong_codes_are_counted_and_the_last_one_locks_the_verification(world: StoreHarness) -> None:
    verification = await world.start()

    results = [await world.check(verification.id, [WRONG]) for _ in range(5)]

    assert [(result.status, result.checks_left) for result in results] == [
        *((Status.PENDING, left) for left in (4, 3, 2, 1)),
        (Status.LOCKED, 0),
    ]
    assert results[-1].retry_after == 60  # when another can be started
    with pytest.raises(VerificationLocked):
        await world.check(verification.id, [RIGHT])


async def test_the_correct_code_verifies_with_the_last_check(world: StoreHarness) -> None:
    verification = await world.start()
    for _ in range(4):
        await world.check(verification.id, [WRONG])

    assert (await world.check(verification.id, [RIGHT])).status is Status.VERIFIED


async def test_a_wrong_code_does_not_change_the_expiry(world: StoreHarness) -> None:
    verification = await world.start()
    await world.advance(timedelta(seconds=200))

    await world.check(verification.id, [WRONG])

    reading = await world.store.read(verification.id, client="shop")
    assert reading.expires_in <= 100


async def test_another_verification_can_be_started_after_one_is_locked(world: StoreHarness) -> None:
    """Otherwise an attacker could lock out the owner of the phone."""
    verification = await world.start()
    await world.lock(verification)
    with pytest.raises(VerificationLocked) as caught:
        await world.check(verification.id, [RIGHT])
    assert 1 <= caught.value.retry_after <= 60
    await world.advance(timedelta(seconds=caught.value.retry_after))

    other = await world.start(SECOND)

    assert (other.checks_left, other.id == verification.id) == (5, False)
    assert (await world.check(other.id, [SECOND])).status is Status.VERIFIED


@pytest.mark.parametrize("ending", ["verified", "locked", "canceled", "expired"])
async def test_only_a_pending_verification_can_be_resent(world: StoreHarness, ending: str) -> None:
    verification = await world.start()
    match ending:
        case "verified":
            await world.check(verification.id, [RIGHT])
        case "locked":
            await world.lock(verification)
        case "canceled":
            await world.store.cancel("shop", verification.id)
    await world.advance(LIFETIME if ending == "expired" else timedelta(seconds=120))

    with pytest.raises(VerificationNotFound):
        await world.start(SECOND, resend_of=verification)


@pytest.mark.parametrize(
    "other",
    [
        {"client": "bank"},
        {"purpose": "password_reset"},
        {"phone": Phone("+79007654321")},
        {"phone": Phone("+79007654321"), "purpose": "password_reset"},
        {"test": True},
    ],
    ids=str,
)
async def test_a_resend_needs_the_same_client_phone_and_purpose(world: StoreHarness, other: dict[str, Any]) -> None:
    """A resend of another client's verification is not found, and does not change it."""
    verification = await world.start()
    await world.advance(timedelta(seconds=120))

    with pytest.raises(VerificationNotFound):
        await world.start(SECOND, resend_of=verification, **other)

    after = await world.store.read(verification.id, client="shop")
    assert (after.calls_placed, after.checks_left, after.resend_in) == (1, 5, 0)


@pytest.mark.parametrize("verification_id", ["", "vrf_00000000000000000000000", "vrf_", "x" * 64, "vrf_{}:*", "7"])
async def test_a_resend_of_an_unknown_or_malformed_id_is_not_found(world: StoreHarness, verification_id: str) -> None:
    verification = await world.start()
    await world.advance(timedelta(seconds=120))

    with pytest.raises(VerificationNotFound):
        await world.start(SECOND, resend_of=replace(verification, id=verification_id))


async def test_every_start_without_an_id_makes_a_new_verification(world: StoreHarness) -> None:
    first = await world.start(RIGHT)
    await world.lock(first)
    await world.advance(timedelta(seconds=120))
    second = await world.start(SECOND)
    await world.advance(timedelta(seconds=120))
    third = await world.start(THIRD)

    assert len({first.id, second.id, third.id}) == 3
    assert [(it.calls_placed, it.calls_left, it.checks_left) for it in (second, third)] == [(1, 2, 5)] * 2
    with pytest.raises(VerificationLocked):
        await world.check(first.id, [RIGHT])
    assert (await world.check(second.id, [THIRD])).status is Status.PENDING
    assert (await world.check(third.id, [THIRD])).status is Status.VERIFIED
    assert (await world.check(second.id, [SECOND])).status is Status.VERIFIED


@pytest.mark.parametrize("code", [RIGHT, SECOND, THIRD], ids=["first", "second", "third"])
async def test_a_check_by_phone_accepts_the_code_of_any_pending_verification(world: StoreHarness, code: bytes) -> None:
    ids = {}
    for own, cooldown in ((RIGHT, 60), (SECOND, 120), (THIRD, 0)):
        ids[own] = (await world.start(own)).id
        await world.advance(timedelta(seconds=cooldown))

    result = await world.check_phone([code])

    assert (result.verification_id, result.status) == (ids[code], Status.VERIFIED)
    for other in ids.keys() - {code}:
        assert (await world.store.read(ids[other], client="shop")).status is Status.PENDING


async def test_a_wrong_check_by_phone_counts_for_the_latest_verification_and_once_per_live_code(
    world: StoreHarness,
) -> None:
    first = await world.start(RIGHT)
    await world.advance(timedelta(seconds=120))
    second = await world.start(SECOND)

    wrong = await world.check_phone([WRONG])

    assert (wrong.verification_id, wrong.checks_left, wrong.quotas[0].remaining) == (second.id, 4, 48)
    assert (await world.store.read(first.id, client="shop")).checks_left == 5
    for _ in range(3):
        await world.check_phone([WRONG])
    assert (await world.check_phone([WRONG])).status is Status.LOCKED
    assert (await world.check_phone([RIGHT])).verification_id == first.id


async def test_a_check_by_phone_without_pending_verifications_raises_the_outcome_of_the_latest(
    world: StoreHarness,
) -> None:
    await world.start(RIGHT)
    await world.check_phone([RIGHT])
    with pytest.raises(VerificationAlreadyUsed):
        await world.check_phone([RIGHT])
    await world.advance(timedelta(seconds=120))
    canceled = await world.start(SECOND)
    await world.store.cancel("shop", canceled.id)

    with pytest.raises(VerificationCanceled):
        await world.check_phone([SECOND])


async def test_one_address_can_use_at_most_a_third_of_a_phones_failed_checks(world: StoreHarness) -> None:
    """So an attacker cannot lock out the owner of the phone, whose own wrong codes still count."""
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 48, DAY))
    for _ in range(4):
        stranger = await world.start(policy=world.policy)
        for _ in range(4):
            await world.check(stranger.id, [WRONG], address="192.0.2.66")
        await world.advance(LIFETIME)

    with pytest.raises(RateLimited) as start:  # its code could not be checked from this address
        await world.start(address="192.0.2.66", policy=world.policy)
    own = await world.start(address="192.0.2.1", policy=world.policy)
    with pytest.raises(RateLimited) as check:
        await world.check(own.id, [RIGHT], address="192.0.2.66")

    assert start.value.limit == check.value.limit == "failed_checks_per_phone_and_address"
    assert 85_000 <= check.value.retry_after <= 86_400
    assert (await world.check(own.id, [WRONG], address="192.0.2.1")).quotas[0].remaining == 31
    assert (await world.check(own.id, [WRONG])).quotas[0].remaining == 30  # checks without an address have no share
    assert (await world.check(own.id, [RIGHT], address="192.0.2.1")).status is Status.VERIFIED


async def test_the_share_of_an_address_covers_all_checks_of_one_verification(world: StoreHarness) -> None:
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 18, DAY))
    verification = await world.start(RIGHT)
    await world.resend(verification, SECOND)
    await world.resend(verification, THIRD)

    results = [await world.check(verification.id, [WRONG], address="192.0.2.1") for _ in range(5)]

    assert [result.quotas[0].remaining for result in results] == [15, 12, 9, 6, 3]
    assert results[-1].status is Status.LOCKED


async def test_of_250_concurrent_checks_of_one_address_five_per_verification_are_counted(world: StoreHarness) -> None:
    world.policy = replace(POLICY, checks=50, failed_checks_per_phone=Limit("failed_checks_per_phone", 500, DAY))
    ids = [
        (await world.start(address=f"192.0.2.{it}", policy=replace(POLICY, cooldowns=(timedelta(),)))).id
        for it in range(5)
    ]

    guesses = [world.check(name, [WRONG], address="192.0.2.66") for name in ids for _ in range(50)]
    results = await asyncio.gather(*guesses, return_exceptions=True)

    assert (
        sum(isinstance(result, CheckResult) for result in results) == 25
    )  # five of each verification, all below the share


async def test_a_repeated_correct_check_returns_the_same_result(world: StoreHarness) -> None:
    """The response may have been lost. Only the same request and client get the result again."""
    verification = await world.start()
    guess = replace(world.guess([RIGHT]), retry_digest="d1")
    first = await world.store.check_by_id(verification.id, guess, POLICY)

    for _ in range(2):
        again = await world.store.check_by_id(verification.id, guess, POLICY)
        assert again == replace(first, quotas=(), is_repeated=True)
    assert not first.is_repeated
    for other in (None, "d2"):
        with pytest.raises(VerificationAlreadyUsed):
            await world.store.check_by_id(verification.id, replace(guess, retry_digest=other), POLICY)
    with pytest.raises(VerificationNotFound):
        await world.store.check_by_id(verification.id, replace(guess, client="bank"), POLICY)
    await world.advance(LIFETIME)
    with pytest.raises(VerificationNotFound):
        await world.store.check_by_id(verification.id, guess, POLICY)


async def test_a_repeated_correct_check_by_phone_returns_the_same_verification(world: StoreHarness) -> None:
    first = await world.start(RIGHT)
    guess = replace(world.guess([RIGHT]), retry_digest="d1")
    await world.store.check_by_phone(PHONE, "login", guess, POLICY)
    await world.advance(timedelta(seconds=120))
    await world.start(SECOND)

    again = await world.store.check_by_phone(PHONE, "login", guess, POLICY)

    assert (again.verification_id, again.status, again.is_repeated) == (first.id, Status.VERIFIED, True)


async def test_a_repeated_wrong_check_is_counted_again(world: StoreHarness) -> None:
    verification = await world.start()
    guess = replace(world.guess([WRONG]), retry_digest="d1")

    results = [await world.store.check_by_id(verification.id, guess, POLICY) for _ in range(2)]

    assert [result.checks_left for result in results] == [4, 3]


async def test_a_verification_is_not_found_after_its_lifetime(world: StoreHarness) -> None:
    verification = await world.start()
    await world.advance(LIFETIME)

    for attempt in (
        world.check(verification.id, [RIGHT]),
        world.check_phone([RIGHT]),
        world.store.read(verification.id, client="shop"),
        world.store.record_call(verification, 1, _update(CallStatus.COMPLETED)),
    ):
        with pytest.raises(VerificationNotFound):
            await attempt


async def test_a_start_within_the_cooldown_is_refused_and_changes_nothing(world: StoreHarness) -> None:
    verification = await world.start()

    await world.place(verification)
    for named in (None, verification):
        with pytest.raises(CallCooldown) as caught:
            await world.start(SECOND, resend_of=named)
        assert caught.value.verification_id == (named and named.id)
        assert 50 <= caught.value.retry_after <= 60

    reading = await world.store.read(verification.id, client="shop")
    assert reading.calls_placed == 1


async def test_the_cooldown_of_a_phone_applies_to_all_clients_and_purposes(world: StoreHarness) -> None:
    await world.start()

    for client, purpose in (("shop", "password_reset"), ("other", "login")):
        with pytest.raises(CallCooldown) as caught:
            await world.start(client=client, purpose=purpose)
        assert caught.value.verification_id is None


async def test_a_resend_keeps_the_id_the_counted_checks_and_the_older_codes(world: StoreHarness) -> None:
    first = await world.start(RIGHT)
    await world.check(first.id, [WRONG])

    second = await world.resend(first, SECOND)

    assert second.id == first.id
    assert (second.calls_placed, second.calls_left, second.checks_left) == (2, 1, 4)
    assert (await world.check(first.id, [RIGHT])).status is Status.VERIFIED


async def test_each_code_has_its_own_lifetime(world: StoreHarness) -> None:
    verification = await world.start(RIGHT)
    await world.resend(verification, SECOND)
    await world.advance(LIFETIME - timedelta(seconds=60))

    expired = await world.check(verification.id, [RIGHT])
    alive = await world.check(verification.id, [SECOND])

    assert (expired.status, alive.status) == (Status.PENDING, Status.VERIFIED)


async def test_the_cooldown_grows_with_every_call_to_a_phone(world: StoreHarness) -> None:
    policy = replace(POLICY, calls=5)
    waits = []
    for _ in range(4):
        verification = await world.start(policy=policy)
        assert verification.resend_in is not None
        waits.append(verification.resend_in)
        await world.advance(timedelta(seconds=verification.resend_in))

    assert waits == [60, 120, 300, 300]


async def test_canceling_and_starting_again_does_not_shorten_the_cooldown(world: StoreHarness) -> None:
    first = await world.start()
    await world.store.cancel("shop", first.id)

    with pytest.raises(CallCooldown) as caught:
        await world.start()
    assert caught.value.verification_id is None

    await world.advance(timedelta(seconds=60))
    second = await world.start()
    assert second.id != first.id
    assert second.resend_in == 120


async def test_the_cooldown_is_reset_only_after_the_longest_cooldown(world: StoreHarness) -> None:
    await world.start()
    await world.advance(timedelta(seconds=359))
    assert (await world.start()).resend_in == 120

    await world.advance(timedelta(seconds=420))
    assert (await world.start()).resend_in == 60


async def test_calls_of_a_verification_are_limited(world: StoreHarness) -> None:
    first = await world.start()
    await world.resend(first, SECOND)
    third = await world.resend(first, THIRD)
    assert (third.calls_left, third.resend_in) == (0, None)

    with pytest.raises(RateLimited) as caught:
        await world.start(resend_of=first)

    assert caught.value.limit == "calls_per_verification"
    assert 299 <= caught.value.retry_after <= 300
    await world.advance(timedelta(seconds=caught.value.retry_after))
    assert (await world.start()).id != third.id


async def test_after_success_a_start_makes_a_new_verification(world: StoreHarness) -> None:
    first = await world.start()
    await world.check(first.id, [RIGHT])
    await world.advance(timedelta(seconds=60))

    second = await world.start(SECOND)

    assert second.id != first.id
    assert second.checks_left == 5
    with pytest.raises(VerificationAlreadyUsed):
        await world.check(first.id, [RIGHT])


async def test_a_canceled_verification_cannot_be_verified(world: StoreHarness) -> None:
    verification = await world.start()

    canceled = await world.store.cancel("shop", verification.id)
    again = await world.store.cancel("shop", verification.id)

    assert canceled.status is again.status is Status.CANCELED
    assert canceled.resend_in is None
    with pytest.raises(VerificationCanceled):
        await world.check(verification.id, [RIGHT])


async def test_a_verified_or_locked_verification_cannot_be_canceled(world: StoreHarness) -> None:
    verified = await world.start()
    await world.check(verified.id, [RIGHT])
    with pytest.raises(VerificationAlreadyUsed):
        await world.store.cancel("shop", verified.id)

    locked = await world.start(phone=Phone("+79007654321"))
    await world.lock(locked)
    with pytest.raises(VerificationLocked):
        await world.store.cancel("shop", locked.id)


async def test_a_recorded_call_is_returned(world: StoreHarness) -> None:
    verification = await world.start()

    recorded = (
        await world.store.record_call(
            verification, 1, CallUpdate(state=CallState(CallStatus.RINGING, "rerouted"), ref="ref-1")
        )
    ).verification

    call = recorded.latest_call
    assert call is not None
    assert (call.call_number, call.ref, call.state) == (1, "ref-1", CallState(CallStatus.RINGING, "rerouted"))


async def test_a_final_call_status_does_not_change(world: StoreHarness) -> None:
    verification = await world.start()
    await world.store.record_call(verification, 1, _update(CallStatus.BUSY))

    after = (await world.store.record_call(verification, 1, _update(CallStatus.RINGING))).verification

    assert [call.state.status for call in after.calls] == [CallStatus.BUSY]


async def test_a_call_status_never_goes_back_to_an_earlier_stage(world: StoreHarness) -> None:
    verification = await world.start()
    await world.store.record_call(verification, 1, _update(CallStatus.ANSWERED))

    recorded = await world.store.record_call(verification, 1, _update(CallStatus.RINGING))

    assert [call.state.status for call in recorded.verification.calls] == [CallStatus.ANSWERED]


async def test_of_a_hundred_concurrent_final_updates_exactly_one_ends_the_call(world: StoreHarness) -> None:
    verification = await world.start()

    reports = [world.store.record_call(verification, 1, _update(CallStatus.COMPLETED)) for _ in range(100)]

    assert sum(recorded.ended for recorded in await asyncio.gather(*reports)) == 1


async def test_a_correct_code_marks_its_unconfirmed_call_as_answered(world: StoreHarness) -> None:
    verification = await world.start()
    await world.store.record_call(verification, 1, _update(CallStatus.UNCONFIRMED, ref=None))

    await world.check(verification.id, [RIGHT])

    read = await world.store.read(verification.id, client="shop")
    assert [call.state.status for call in read.calls] == [CallStatus.ANSWERED]


async def test_a_code_chosen_by_the_provider_replaces_ours(world: StoreHarness) -> None:
    verification = await world.start(channel=Channel.FLASH_CALL)
    report = _update(CallStatus.INITIATED, code_digest=SECOND, code_length=4)
    await world.store.record_call(verification, 1, report)
    world.lengths[SECOND] = 4

    assert (await world.check(verification.id, [RIGHT])).status is Status.PENDING
    assert (await world.check(verification.id, [SECOND])).status is Status.VERIFIED


async def test_after_a_refund_only_the_code_of_the_next_call_is_valid(world: StoreHarness) -> None:
    refused = await world.start()
    await world.refund(refused, 1)

    placed = await world.start(SECOND, channel=Channel.FLASH_CALL)

    assert (placed.channel, placed.code_length, placed.checks_left) == (Channel.FLASH_CALL, 4, 3)
    assert (placed.calls_placed, placed.calls_left, placed.resend_in) == (1, 2, 60)
    world.lengths[RIGHT] = 4
    assert (await world.check(placed.id, [RIGHT])).status is Status.PENDING
    assert (await world.check(placed.id, [SECOND])).status is Status.VERIFIED


async def test_a_resend_on_a_channel_with_fewer_checks_leaves_at_least_one_check(world: StoreHarness) -> None:
    verification = await world.start()
    for _ in range(4):
        await world.check(verification.id, [WRONG])

    again = await world.again(verification, SECOND, channel=Channel.FLASH_CALL)
    assert again.checks_left == 1
    again = await world.place(again)

    assert again.checks_left == 1
    assert (await world.check(verification.id, [SECOND])).status is Status.VERIFIED


async def test_the_history_has_the_operator_and_the_calls_of_pending_verifications(world: StoreHarness) -> None:
    verification = await world.start()
    await world.store.record_call(verification, 1, _update(CallStatus.NO_ANSWER, operator="mts"))
    await world.resend(verification, SECOND, channel=Channel.FLASH_CALL)

    history = await world.history("shop")

    assert history.operator == "mts"
    assert list(history.calls) == [
        (Channel.VOICE, CallStatus.NO_ANSWER),
        (Channel.FLASH_CALL, CallStatus.INITIATED),
    ]
    assert not (await world.history("other")).calls
    await world.store.cancel("shop", verification.id)
    assert not (await world.history("shop")).calls


async def test_a_reverse_call_verifies_without_a_code_once_confirmed(world: StoreHarness) -> None:
    verification = await world.reverse_call()
    assert (await world.check(verification.id, [])).status is Status.PENDING
    await world.advance(timedelta(seconds=5))

    assert await world.dial(verification) is Confirmation.CONFIRMED
    assert await world.dial(verification) is Confirmation.CONFIRMED_BEFORE

    result = await world.check(verification.id, [])
    assert (result.status, result.phone) == (Status.VERIFIED, PHONE)
    with pytest.raises(VerificationAlreadyUsed):
        await world.check(verification.id, [])
    assert await world.dial(verification) is Confirmation.CONFIRMED_BEFORE


async def test_of_a_hundred_concurrent_checks_of_a_reverse_call_exactly_one_verifies(world: StoreHarness) -> None:
    verification = await world.reverse_call()
    await world.advance(timedelta(seconds=5))
    confirmations = await asyncio.gather(*(world.dial(verification) for _ in range(100)))
    assert confirmations.count(Confirmation.CONFIRMED) == 1

    results = await asyncio.gather(*(world.check(verification.id, []) for _ in range(100)), return_exceptions=True)

    assert sum(isinstance(result, CheckResult) for result in results) == 1


async def test_a_callback_confirms_only_the_call_with_its_reference_and_caller(world: StoreHarness) -> None:
    verification = await world.reverse_call()
    assert await world.dial(verification) is Confirmation.TOO_EARLY
    await world.advance(timedelta(seconds=5))

    assert await world.dial(verification, ref="another") is Confirmation.NOT_FOUND
    assert await world.dial(verification, caller=DIAL) is Confirmation.NOT_THE_CALLER
    assert (
        await world.store.confirm(verification, 2, ref="ref-1", caller=PHONE, policy=POLICY) is Confirmation.NOT_FOUND
    )
    assert (await world.check(verification.id, [])).status is Status.PENDING


async def test_a_callback_does_not_confirm_a_call_with_a_code(world: StoreHarness) -> None:
    verification = await world.start()
    await world.store.record_call(verification, 1, _update(CallStatus.INITIATED))
    await world.advance(timedelta(seconds=5))

    assert await world.dial(verification) is Confirmation.NOT_FOUND
    with pytest.raises(CodeRequired):
        await world.check(verification.id, [])


async def test_a_callback_does_not_confirm_a_canceled_reverse_call(world: StoreHarness) -> None:
    verification = await world.reverse_call()
    await world.advance(timedelta(seconds=5))
    await world.store.cancel("shop", verification.id)

    assert await world.dial(verification) is Confirmation.NOT_FOUND


async def test_a_confirmed_reverse_call_does_not_verify_after_its_lifetime(world: StoreHarness) -> None:
    verification = await world.reverse_call()
    await world.advance(timedelta(seconds=250))
    assert await world.dial(verification) is Confirmation.CONFIRMED
    await world.advance(timedelta(seconds=60))

    with pytest.raises(VerificationNotFound):
        await world.check(verification.id, [])


async def test_the_id_of_a_reverse_call_is_not_revealed_by_other_requests(world: StoreHarness) -> None:
    """The id alone identifies the session: another session could check with it once the person has dialled."""
    reverse = await world.reverse_call()

    with pytest.raises(CallCooldown) as refused:
        await world.start()
    with pytest.raises(VerificationNotFound):
        await world.check_phone([WRONG])
    await world.advance(timedelta(seconds=120))
    coded = await world.start(RIGHT)

    assert refused.value.verification_id is None
    assert coded.id != reverse.id
    assert (await world.check_phone([WRONG])).verification_id == coded.id


async def test_a_verification_with_a_code_and_a_reverse_call_are_independent(world: StoreHarness) -> None:
    coded = await world.start(RIGHT)
    await world.advance(timedelta(seconds=60))
    reverse = await world.reverse_call()
    again = await world.resend(coded, SECOND)

    assert again.id == coded.id != reverse.id
    assert (coded.calls_left, reverse.calls_left, again.calls_left) == (2, 0, 1)
    assert reverse.resend_in is None
    assert await world.dial(reverse) is Confirmation.CONFIRMED
    with pytest.raises(CodeRequired):
        await world.check(coded.id, [])
    assert (await world.check(reverse.id, [])).status is Status.VERIFIED
    assert (await world.check(coded.id, [RIGHT])).status is Status.VERIFIED


async def test_a_phone_has_at_most_one_pending_reverse_call_over_all_clients(world: StoreHarness) -> None:
    """Otherwise one dialled call could confirm another, because both may have the same number to dial."""
    first = await world.reverse_call()
    await world.advance(timedelta(seconds=120))

    with pytest.raises(CallCooldown) as refused:
        await world.start(client="bank", purpose="password_reset", channel=Channel.REVERSE_CALL)

    assert refused.value.verification_id is None
    assert 170 <= refused.value.retry_after <= 180
    await world.store.cancel("shop", first.id)
    second = await world.start(client="bank", channel=Channel.REVERSE_CALL)
    await world.refund(second, 1)
    third = await world.reverse_call()
    await world.advance(timedelta(seconds=5))
    await world.dial(third)
    await world.check(third.id, [])
    await world.advance(timedelta(seconds=295))
    assert (await world.reverse_call()).status is Status.PENDING
    await world.advance(LIFETIME)
    assert (await world.reverse_call()).status is Status.PENDING


async def test_a_reverse_call_always_has_its_own_verification(world: StoreHarness) -> None:
    """A resend as a reverse call makes a new verification, and so does a resend of a reverse call."""
    coded = await world.start(RIGHT)
    await world.advance(timedelta(seconds=60))
    reverse = await world.start(channel=Channel.REVERSE_CALL, resend_of=coded)
    await world.advance(timedelta(seconds=120))
    other = await world.start(SECOND, resend_of=reverse)

    assert len({coded.id, reverse.id, other.id}) == 3
    assert (await world.check(coded.id, [RIGHT])).status is Status.VERIFIED


async def test_of_fifty_concurrent_reverse_calls_exactly_one_is_started(world: StoreHarness) -> None:
    policy = replace(POLICY, cooldowns=(timedelta(),))
    starts = [
        world.start(client=f"client-{number}", channel=Channel.REVERSE_CALL, policy=policy) for number in range(50)
    ]

    started = await asyncio.gather(*starts, return_exceptions=True)

    assert sum(isinstance(it, CallCooldown) for it in started) == 49


async def test_a_code_of_another_length_is_rejected_and_not_counted(world: StoreHarness) -> None:
    verification = await world.start()

    for length in (4, 5):
        with pytest.raises(CodeTooShortOrLong) as refused:
            await world.store.check_by_id(
                verification.id, CodeCheck(client="shop", candidates=[WRONG], length=length), POLICY
            )
        assert refused.value.lengths == {6}

    assert (await world.check(verification.id, [WRONG])).checks_left == 4
    again = await world.resend(verification, SECOND, channel=Channel.FLASH_CALL)
    assert (await world.check(again.id, [WRONG])).status is Status.PENDING
    assert (await world.check(again.id, [RIGHT])).status is Status.VERIFIED


async def test_a_code_for_a_reverse_call_is_rejected_and_not_counted(world: StoreHarness) -> None:
    verification = await world.reverse_call()

    with pytest.raises(CodeNotExpected):
        await world.check(verification.id, [WRONG])

    assert (await world.check(verification.id, [])).checks_left == verification.checks_left


async def test_refunding_a_call_of_another_channel_leaves_the_pending_verification_unchanged(
    world: StoreHarness,
) -> None:
    coded = await world.start(RIGHT)
    for channel in (Channel.REVERSE_CALL, Channel.FLASH_CALL):
        refused = await world.again(coded, SECOND, channel=channel)
        await world.refund(refused, refused.calls[-1].call_number)

    after = await world.store.read(coded.id, client="shop")
    assert (after.channel, after.code_length, after.checks_left) == (Channel.VOICE, 6, 5)
    assert (after.calls_placed, after.calls_left) == (1, 2)
    assert (await world.start(THIRD, resend_of=coded)).id == coded.id
    assert (await world.check_phone([RIGHT])).status is Status.VERIFIED


async def test_refunding_a_call_leaves_a_pending_reverse_call_unchanged(world: StoreHarness) -> None:
    reverse = await world.reverse_call()
    await world.advance(timedelta(seconds=120))
    refused = await world.start(SECOND)
    await world.refund(refused, 1)

    assert await world.dial(reverse) is Confirmation.CONFIRMED
    assert (await world.check(reverse.id, [])).status is Status.VERIFIED


async def test_wrong_codes_stay_counted_after_a_refund(world: StoreHarness) -> None:
    coded = await world.start(RIGHT)
    await world.check(coded.id, [WRONG])
    refused = await world.again(coded, SECOND, channel=Channel.FLASH_CALL)
    await world.check(coded.id, [WRONG])
    await world.refund(refused, 2)

    world.lengths[WRONG] = 6
    assert (await world.check(coded.id, [WRONG])).checks_left == 2


async def test_a_call_that_is_not_placed_yet_does_not_reduce_the_checks_left(world: StoreHarness) -> None:
    """A start that the provider refuses must not lock a verification after three wrong codes."""
    coded = await world.start(RIGHT)
    for _ in range(3):
        await world.check(coded.id, [WRONG])
    refused = await world.again(coded, SECOND, channel=Channel.FLASH_CALL)
    world.lengths[WRONG] = 6
    assert (await world.check(coded.id, [WRONG])).status is Status.PENDING
    await world.refund(refused, 2)

    assert (await world.store.read(coded.id, client="shop")).checks_left == 1
    assert (await world.check(coded.id, [RIGHT])).status is Status.VERIFIED


async def test_refunding_a_call_of_a_locked_verification_does_not_unlock_it(world: StoreHarness) -> None:
    coded = await world.start(RIGHT)
    refused = await world.again(coded, SECOND, channel=Channel.FLASH_CALL)
    for _ in range(5):
        await world.check(coded.id, [WRONG])

    await world.refund(refused, 2)

    after = await world.store.read(refused.id, client="shop")
    assert (after.status, after.checks_left) == (Status.LOCKED, 0)


async def test_a_pending_reverse_call_is_in_the_history_of_every_client(world: StoreHarness) -> None:
    reverse = await world.reverse_call()
    history = await world.history("bank")
    assert list(history.calls) == [(Channel.REVERSE_CALL, CallStatus.INITIATED)]

    await world.store.cancel("shop", reverse.id)

    assert not (await world.history("bank")).calls


async def test_each_change_increases_the_version(redis: Redis, store: RedisVerificationStore) -> None:
    world = StoreHarness(store, lambda duration: age(redis, duration))
    verification = await world.start()
    versions = [verification.version]
    versions.append((await world.store.record_call(verification, 1, _update(CallStatus.RINGING))).verification.version)
    versions.append(
        (await world.store.record_call(verification, 1, _update(CallStatus.RINGING, ref=None))).verification.version
    )
    await world.check(verification.id, [WRONG])
    versions.append((await world.store.read(verification.id, client="shop")).version)
    versions.append((await world.store.cancel("shop", verification.id)).version)
    versions.append((await world.store.cancel("shop", verification.id)).version)

    assert versions == [0, 1, 1, 2, 3, 3]


async def test_a_verification_fails_when_all_its_calls_failed(world: StoreHarness) -> None:
    policy = replace(POLICY, calls=1)
    verification = await world.start(policy=policy)

    after = (await world.store.record_call(verification, 1, _update(CallStatus.NO_ANSWER))).verification

    assert after.status is Status.FAILED


async def test_refunding_the_only_call_deletes_the_verification(world: StoreHarness) -> None:
    verification = await world.start()

    await world.refund(verification, 1)

    with pytest.raises(VerificationNotFound):
        await world.store.read(verification.id, client="shop")
    again = await world.start()
    assert (again.calls_placed, again.resend_in) == (1, 60)


async def test_refunding_a_resend_leaves_the_first_call_unchanged(world: StoreHarness) -> None:
    first = await world.start(RIGHT)
    second = await world.again(first, SECOND)

    await world.refund(second, 2)

    after = await world.store.read(first.id, client="shop")
    assert (after.calls_placed, after.calls_left, after.resend_in) == (1, 2, 0)
    assert after.expires_at <= after.created_at + LIFETIME
    assert [call.call_number for call in after.calls] == [1]
    assert (await world.check(first.id, [SECOND])).status is Status.PENDING
    assert (await world.check(first.id, [RIGHT])).status is Status.VERIFIED


async def test_a_second_refund_changes_nothing_even_after_a_new_call(world: StoreHarness) -> None:
    first = await world.start(RIGHT)
    second = await world.again(first, SECOND)
    await world.refund(second, 2)
    third = await world.start(THIRD, resend_of=first)

    await world.refund(second, 2)

    after = await world.store.read(third.id, client="shop")
    assert (after.calls_placed, after.calls_left) == (2, 1)
    with pytest.raises(CallCooldown):
        await world.start()
    assert (await world.check(third.id, [THIRD])).status is Status.VERIFIED


async def test_failed_checks_of_a_phone_stay_counted_after_a_refund(world: StoreHarness) -> None:
    """Otherwise an attacker could guess without limit while the provider refuses every call."""
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 5, DAY))
    for _ in range(5):
        verification = await world.start(policy=world.policy)
        await world.check(verification.id, [WRONG])
        await world.refund(verification, 1)

    with pytest.raises(RateLimited, match="failed_checks_per_phone"):
        await world.start(policy=world.policy)


async def test_a_refunded_start_leaves_the_phone_unchanged(world: StoreHarness) -> None:
    """Cooldown, calls and the latest verification are as if the start had not happened."""
    first = await world.start()
    await world.place(first)
    await world.advance(timedelta(seconds=100))
    for _ in range(5):
        await world.refund(await world.start(SECOND), 1)
    await world.refund(await world.start(SECOND, resend_of=first), 2)

    again = await world.start(SECOND)

    assert again.resend_in == 120
    assert (await world.check_phone([RIGHT])).verification_id == first.id


async def test_a_refund_after_success_leaves_the_verification_verified(world: StoreHarness) -> None:
    first = await world.start(RIGHT)
    second = await world.again(first, SECOND)
    await world.check(first.id, [RIGHT])

    await world.refund(second, 2)

    assert (await world.store.read(first.id, client="shop")).status is Status.VERIFIED


async def test_of_a_hundred_concurrent_correct_checks_exactly_one_verifies(world: StoreHarness) -> None:
    verification = await world.start()

    checks = [world.check(verification.id, [RIGHT]) for _ in range(100)]
    results = await asyncio.gather(*checks, return_exceptions=True)

    refused = [result for result in results if isinstance(result, VerificationAlreadyUsed)]
    assert (len(refused), len(results)) == (99, 100)


async def test_of_a_hundred_concurrent_wrong_checks_exactly_five_are_counted(world: StoreHarness) -> None:
    verification = await world.start()

    checks = [world.check(verification.id, [WRONG]) for _ in range(100)]
    results = await asyncio.gather(*checks, return_exceptions=True)

    assert sum(isinstance(result, VerificationLocked) for result in results) == 95


async def test_of_fifty_concurrent_starts_exactly_one_succeeds(world: StoreHarness) -> None:
    results = await asyncio.gather(*[world.start() for _ in range(50)], return_exceptions=True)

    assert sum(isinstance(result, Verification) for result in results) == 1
    assert sum(isinstance(result, CallCooldown) for result in results) == 49


async def test_calls_to_a_phone_are_limited_per_hour_and_day(world: StoreHarness) -> None:
    """The limit counts calls of all clients, purposes and verifications."""
    policy = replace(
        POLICY,
        cooldowns=(timedelta(),),
        calls=100,
        calls_per_phone=(Limit("calls_per_phone_hour", 2, HOUR), Limit("calls_per_phone_day", 3, DAY)),
    )
    await world.start(policy=policy)
    await world.start(policy=policy, client="bank")
    with pytest.raises(RateLimited) as hourly:
        await world.start(policy=policy, purpose="password_reset")
    assert hourly.value.limit == "calls_per_phone_hour"
    assert 3590 <= hourly.value.retry_after <= 3600

    await world.advance(HOUR)
    await world.start(policy=policy)
    with pytest.raises(RateLimited) as daily:
        await world.start(policy=policy)
    assert daily.value.limit == "calls_per_phone_day"
    assert 82_790 <= daily.value.retry_after <= 82_800

    await world.advance(timedelta(seconds=daily.value.retry_after))
    await world.start(policy=policy)


async def test_a_refunded_call_does_not_count_for_the_limit(world: StoreHarness) -> None:
    policy = replace(POLICY, calls_per_phone=(Limit("calls_per_phone_hour", 1, HOUR),))
    verification = await world.start(policy=policy)
    await world.refund(verification, 1)

    await world.start(policy=policy)


async def test_failed_checks_of_a_phone_are_limited_over_all_its_verifications(world: StoreHarness) -> None:
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 7, DAY))
    first = await world.start()
    await world.lock(first)
    await world.advance(LIFETIME)
    second = await world.start()
    await world.check(second.id, [WRONG])
    await world.check_phone([WRONG])

    for refused in (world.check(second.id, [RIGHT]), world.check_phone([RIGHT])):
        with pytest.raises(RateLimited) as caught:
            await refused
        assert caught.value.limit == "failed_checks_per_phone"
    await world.advance(timedelta(seconds=120))
    with pytest.raises(RateLimited, match="failed_checks_per_phone"):  # its code could not be checked
        await world.start(policy=world.policy)

    await world.advance(DAY)
    third = await world.start(policy=world.policy)
    assert (await world.check(third.id, [RIGHT])).status is Status.VERIFIED


async def test_correct_checks_are_not_counted_as_failed(world: StoreHarness) -> None:
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 1, DAY))
    for _ in range(3):
        verification = await world.start()
        assert (await world.check(verification.id, [RIGHT])).status is Status.VERIFIED
        await world.advance(LIFETIME)


async def test_a_failed_check_counts_for_the_phone_once_per_live_code(world: StoreHarness) -> None:
    """Each live code is another chance to guess correctly, so three calls must not triple the chances."""
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 5, DAY))
    verification = await world.start()
    assert (await world.check(verification.id, [WRONG])).quotas[0].remaining == 4
    await world.resend(verification, SECOND)

    assert (await world.check(verification.id, [WRONG])).quotas[0].remaining == 2
    result = await world.check(verification.id, [WRONG])
    assert (result.quotas[0].remaining, result.checks_left) == (0, 2)
    with pytest.raises(RateLimited, match="failed_checks_per_phone"):
        await world.check(verification.id, [RIGHT])


async def test_a_quota_of_failed_checks_never_becomes_negative(world: StoreHarness) -> None:
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 1, DAY))
    verification = await world.start()
    await world.resend(verification, SECOND)

    assert (await world.check(verification.id, [WRONG])).quotas[0].remaining == 0


async def test_failed_checks_of_an_address_and_a_client_are_limited_over_all_phones(world: StoreHarness) -> None:
    """One guess for each of many phones is an attack as well."""
    minutes = timedelta(minutes=10)
    world.policy = replace(
        POLICY,
        failed_checks_per_address=Limit("failed_checks_per_address", 2, minutes),
        failed_checks_per_client=Limit("failed_checks_per_client", 3, minutes),
    )
    ids = [(await world.start(phone=Phone(f"+7900123456{number}"))).id for number in range(6)]
    for name in ids[:2]:
        await world.check(name, [WRONG], address="192.0.2.1")
    with pytest.raises(RateLimited) as caught:
        await world.check(ids[2], [RIGHT], address="192.0.2.1")
    assert caught.value.limit == "failed_checks_per_address"

    await world.check(ids[3], [WRONG], address="192.0.2.2")
    with pytest.raises(RateLimited) as caught:
        await world.check(ids[4], [RIGHT], address="192.0.2.3")
    assert caught.value.limit == "failed_checks_per_client"

    refused = await world.store.read(ids[4], client="shop")
    assert (refused.status, refused.checks_left) == (Status.PENDING, 5)


async def test_a_test_number_has_no_cooldown_and_counts_for_no_limit(world: StoreHarness) -> None:
    once = Limit("failed_checks_per_phone", 1, DAY)
    world.policy = replace(
        POLICY, calls_per_phone=(Limit("calls_per_phone_hour", 1, HOUR),), failed_checks_per_phone=once
    )
    ids = set()
    for _ in range(5):
        verification = await world.start(test=True, policy=world.policy)
        assert verification.test
        ids.add(verification.id)
        await world.check(verification.id, [WRONG])
        result = await world.check(verification.id, [RIGHT])
        assert (result.status, result.test) == (Status.VERIFIED, True)
    assert len(ids) == 5


async def test_quotas_have_the_remaining_count_of_each_limit(world: StoreHarness) -> None:
    call = NewCall(
        client="shop", phone=PHONE, purpose="login", channel=Channel.VOICE, code_digest=RIGHT, code_length=6, checks=5
    )
    preview = await world.store.preview_start(call, POLICY)
    started = await world.store.start(preview.name, call, POLICY)
    wrong = await world.check(started.verification.id, [WRONG], address="192.0.2.1")

    assert [(quota.limit.name, quota.remaining) for quota in started.quotas] == [
        ("calls_per_phone_hour", 4),
        ("calls_per_phone_day", 9),
    ]
    assert [(quota.limit.name, quota.remaining) for quota in wrong.quotas] == [
        ("failed_checks_per_phone", 49),
        ("failed_checks_per_client", 999),
        ("failed_checks_per_address", 99),
    ]


async def test_a_check_is_refused_when_the_phones_limit_has_no_room_for_every_live_code(world: StoreHarness) -> None:
    """With three live codes a check counts three times, so a limit of four has no room for a second check."""
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 4, DAY))
    verification = await world.start(RIGHT)
    await world.resend(verification, SECOND)
    await world.resend(verification, THIRD)

    assert (await world.check(verification.id, [WRONG])).checks_left == 4
    with pytest.raises(RateLimited, match="failed_checks_per_phone"):
        await world.check(verification.id, [RIGHT])


async def test_a_former_test_number_starts_a_new_verification(world: StoreHarness) -> None:
    test = await world.start(test=True)

    ordinary = await world.start(SECOND)

    assert ordinary.id != test.id
    assert not ordinary.test
    assert (await world.check(ordinary.id, [RIGHT])).status is Status.PENDING


async def test_of_two_concurrent_resends_the_refused_one_does_not_refund_the_other(world: StoreHarness) -> None:
    """The preview gave both of them the same call number."""
    policy = replace(POLICY, cooldowns=(timedelta(),))
    first = await world.place(await world.start(policy=policy))
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
    name = (await world.store.preview_start(second, policy)).name
    placed = (await world.store.start(name, second, policy)).verification

    with pytest.raises(CallCooldown):
        await world.store.start(name, replace(second, token="loser"), policy)
    undone = await world.store.refund(name, phone=PHONE, client="shop", policy=policy, token="loser")
    await world.place(placed)
    late = await world.store.refund(name, phone=PHONE, client="shop", policy=policy, token="winner")

    assert (name, undone, late) == (CallId(first.id, 2), False, False)
    assert (await world.store.read(first.id, client="shop")).calls_placed == 2
    assert (await world.check(first.id, [SECOND])).status is Status.VERIFIED


async def test_retry_after_is_short_until_the_call_is_placed(world: StoreHarness) -> None:
    """The provider may refuse. Once the call is placed or its timeout is over, the full cooldown applies."""
    asked = await world.start()
    with pytest.raises(CallCooldown) as meanwhile:
        await world.start(SECOND, purpose="password_reset")
    await world.place(asked)
    with pytest.raises(CallCooldown) as after:
        await world.start(SECOND, purpose="password_reset")
    other = Phone("+79007654321")
    await world.start(phone=other)
    await world.advance(timedelta(seconds=20))
    with pytest.raises(CallCooldown) as late:
        await world.start(phone=other)

    assert meanwhile.value.retry_after == 1
    assert 55 <= after.value.retry_after <= 60
    assert 35 <= late.value.retry_after <= 40


async def test_refunded_calls_of_a_verification_are_limited(world: StoreHarness) -> None:
    first = await world.place(await world.start(policy=replace(POLICY, cooldowns=(timedelta(),))))
    policy = replace(POLICY, cooldowns=(timedelta(),))
    for number in range(2, 101):
        await world.refund(await world.start(SECOND, resend_of=first, policy=policy), number)

    with pytest.raises(RateLimited, match="calls_per_verification"):
        await world.start(SECOND, resend_of=first, policy=policy)
    assert (await world.check(first.id, [RIGHT])).status is Status.VERIFIED
