"""What every VerificationStore does: one suite over the fake that other tests trust, and over Redis."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
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
from tests.fakes import FakeVerificationStore
from tests.outcomes import expect
from tests.policies import make_policy

PHONE = Phone("+79001234567")
POLICY = make_policy()
LIFETIME = POLICY.lifetime
DIAL = Phone("+78005550100")
RIGHT, SECOND, THIRD, WRONG = (bytes([number]) * 32 for number in range(1, 5))


def _update(status: CallStatus, word: str | None = None, **facts: Any) -> CallUpdate:  # noqa: ANN401 - its fields
    return CallUpdate(state=CallState(status, word), **{"ref": "ref-1", **facts})


@dataclass
class World:
    """A store, and the means to let time pass in it."""

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
            test=True,  # which meets no limit
        )
        return (await self.store.preview_start(call, POLICY)).history

    async def refund(self, verification: Verification, number: int) -> bool:
        name = CallId(verification.id, number)
        return await self.store.refund(name, phone=verification.phone, client=verification.client, policy=POLICY)

    async def check(
        self, verification_id: str, candidates: list[bytes], *, client: str = "shop", address: str | None = None
    ) -> CheckOutcome:
        return await self.store.check_by_id(
            verification_id, self.guess(candidates, client=client, address=address), self.policy
        )

    async def check_phone(
        self, candidates: list[bytes], *, client: str = "shop", purpose: str = "login"
    ) -> CheckOutcome:
        return await self.store.check_by_phone(PHONE, purpose, self.guess(candidates, client=client), self.policy)

    def guess(self, candidates: list[bytes], *, client: str = "shop", address: str | None = None) -> CodeCheck:
        """Guess at a code that is as long as the one that was given, a wrong one as the last that was."""
        lengths = {self.lengths.get(candidate, 6) for candidate in candidates}
        return CodeCheck(client=client, candidates=candidates, length=max(lengths, default=0), address=address)

    async def again(self, first: Verification, code: bytes, *, channel: Channel = Channel.VOICE) -> Verification:
        """Begin to call again, once the cooldown of the call before is over."""
        await self.advance(timedelta(seconds=120))
        return await self.start(code, channel=channel, resend_of=first)

    async def resend(self, first: Verification, code: bytes, *, channel: Channel = Channel.VOICE) -> Verification:
        """Call again, and record the call as placed."""
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


@pytest.fixture(params=["fake", "redis"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "fake":
        fake = FakeVerificationStore()

        async def advance(duration: timedelta) -> None:
            fake.advance(duration)

        return World(fake, advance)
    redis: Redis = request.getfixturevalue("redis")
    store: RedisVerificationStore = request.getfixturevalue("store")
    return World(store, lambda duration: age(redis, duration))


async def test_a_start_makes_a_pending_verification(world: World) -> None:
    verification = await world.start()

    assert verification.status is Status.PENDING
    assert verification.phone == PHONE
    assert (verification.client, verification.purpose, verification.code_length) == ("shop", "login", 6)
    assert (verification.calls_placed, verification.calls_left, verification.checks_left) == (1, 2, 5)
    assert [call.state.status for call in verification.calls] == [CallStatus.INITIATED]
    assert (verification.expires_in, verification.resend_in) == (300, 60)


async def test_the_right_code_verifies_and_is_then_spent(world: World) -> None:
    verification = await world.start()

    result = expect(CheckPassed, await world.check(verification.id, [RIGHT]))

    assert (result.status, result.phone, result.purpose) == (Status.VERIFIED, PHONE, "login")
    with pytest.raises(VerificationAlreadyUsed):
        await world.check(verification.id, [RIGHT])


async def test_a_check_by_phone_finds_the_same_verification(world: World) -> None:
    verification = await world.start()

    wrong = expect(WrongCode, await world.check_phone([WRONG]))
    right = await world.check_phone([RIGHT])

    assert (wrong.verification_id, wrong.checks_left) == (verification.id, 4)
    assert (right.verification_id, right.status) == (verification.id, Status.VERIFIED)


async def test_a_code_under_an_older_key_verifies(world: World) -> None:
    verification = await world.start(RIGHT)

    result = await world.check(verification.id, [WRONG, RIGHT])

    assert result.status is Status.VERIFIED


async def test_candidates_under_several_keys_cost_one_check(world: World) -> None:
    verification = await world.start(RIGHT)

    result = expect(WrongCode, await world.check(verification.id, [WRONG, SECOND]))

    assert result.checks_left == 4


@pytest.mark.parametrize(
    ("client", "purpose"), [("other", "login"), ("shop", "password_reset")], ids=["client", "purpose"]
)
async def test_another_clients_or_purposes_verification_is_not_found_by_phone(
    world: World, client: str, purpose: str
) -> None:
    await world.start()

    with pytest.raises(VerificationNotFound):
        await world.check_phone([RIGHT], client=client, purpose=purpose)


async def test_a_client_sees_only_its_own_verifications(world: World) -> None:
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
async def test_an_unknown_or_impossible_id_is_not_found(world: World, verification_id: str) -> None:
    for attempt in (
        world.check(verification_id, [RIGHT]),
        world.store.read(verification_id, client="shop"),
        world.store.cancel("shop", verification_id),
    ):
        with pytest.raises(VerificationNotFound):
            await attempt


async def test_wrong_codes_are_counted_and_the_last_one_locks(world: World) -> None:
    verification = await world.start()

    results = [await world.check(verification.id, [WRONG]) for _ in range(5)]

    assert [expect(WrongCode, result).checks_left for result in results[:4]] == [4, 3, 2, 1]
    assert [result.status for result in results] == [*[Status.PENDING] * 4, Status.LOCKED]
    assert expect(Locked, results[-1]).retry_after == 60  # when another can be started
    with pytest.raises(VerificationLocked):
        await world.check(verification.id, [RIGHT])


async def test_the_last_check_still_verifies(world: World) -> None:
    verification = await world.start()
    for _ in range(4):
        await world.check(verification.id, [WRONG])

    assert (await world.check(verification.id, [RIGHT])).status is Status.VERIFIED


async def test_a_wrong_code_moves_no_expiry(world: World) -> None:
    verification = await world.start()
    await world.advance(timedelta(seconds=200))

    await world.check(verification.id, [WRONG])

    reading = await world.store.read(verification.id, client="shop")
    assert reading.expires_in <= 100


async def test_a_locked_verification_keeps_nobody_from_starting_another(world: World) -> None:
    """Else a stranger who locks one of his own would lock the phone's owner out."""
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
async def test_only_a_pending_verification_can_be_called_again(world: World, ending: str) -> None:
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
async def test_a_resend_is_of_the_same_client_phone_and_purpose(world: World, other: dict[str, Any]) -> None:
    """Whoever names another's verification is told that there is none, and its state is as it was."""
    verification = await world.start()
    await world.advance(timedelta(seconds=120))

    with pytest.raises(VerificationNotFound):
        await world.start(SECOND, resend_of=verification, **other)

    after = await world.store.read(verification.id, client="shop")
    assert (after.calls_placed, after.checks_left, after.resend_in) == (1, 5, 0)


@pytest.mark.parametrize("verification_id", ["", "vrf_00000000000000000000000", "vrf_", "x" * 64, "vrf_{}:*", "7"])
async def test_no_call_is_stored_for_an_id_that_is_none(world: World, verification_id: str) -> None:
    verification = await world.start()
    await world.advance(timedelta(seconds=120))

    with pytest.raises(VerificationNotFound):
        await world.start(SECOND, resend_of=replace(verification, id=verification_id))


async def test_every_start_without_an_id_is_a_verification_of_its_own(world: World) -> None:
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
async def test_a_check_by_phone_knows_the_code_of_each_pending_verification(world: World, code: bytes) -> None:
    ids = {}
    for own, cooldown in ((RIGHT, 60), (SECOND, 120), (THIRD, 0)):
        ids[own] = (await world.start(own)).id
        await world.advance(timedelta(seconds=cooldown))

    result = await world.check_phone([code])

    assert (result.verification_id, result.status) == (ids[code], Status.VERIFIED)
    for other in ids.keys() - {code}:
        assert (await world.store.read(ids[other], client="shop")).status is Status.PENDING


async def test_a_wrong_check_by_phone_counts_against_the_latest_and_once_for_each_code(world: World) -> None:
    first = await world.start(RIGHT)
    await world.advance(timedelta(seconds=120))
    second = await world.start(SECOND)

    wrong = expect(WrongCode, await world.check_phone([WRONG]))

    assert (wrong.verification_id, wrong.checks_left, wrong.quotas[0].remaining) == (second.id, 4, 48)
    assert (await world.store.read(first.id, client="shop")).checks_left == 5
    for _ in range(3):
        await world.check_phone([WRONG])
    assert (await world.check_phone([WRONG])).status is Status.LOCKED
    assert (await world.check_phone([RIGHT])).verification_id == first.id


async def test_a_check_by_phone_after_the_end_of_all_tells_how_the_latest_ended(world: World) -> None:
    await world.start(RIGHT)
    await world.check_phone([RIGHT])
    with pytest.raises(VerificationAlreadyUsed):
        await world.check_phone([RIGHT])
    await world.advance(timedelta(seconds=120))
    canceled = await world.start(SECOND)
    await world.store.cancel("shop", canceled.id)

    with pytest.raises(VerificationAlreadyCanceled):
        await world.check_phone([SECOND])


async def test_one_address_can_use_a_third_of_a_phones_failed_checks(world: World) -> None:
    """So a stranger does not lock the phone's owner out, whose own wrong codes count for all that."""
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 48, DAY))
    for _ in range(4):
        stranger = await world.start(policy=world.policy)
        for _ in range(4):
            await world.check(stranger.id, [WRONG], address="192.0.2.66")
        await world.advance(LIFETIME)

    with pytest.raises(RateLimited) as start:  # nobody could check its code from there
        await world.start(address="192.0.2.66", policy=world.policy)
    own = await world.start(address="192.0.2.1", policy=world.policy)
    with pytest.raises(RateLimited) as check:
        await world.check(own.id, [RIGHT], address="192.0.2.66")

    assert start.value.limit == check.value.limit == "failed_checks_per_phone_and_address"
    assert 85_000 <= check.value.retry_after <= 86_400
    assert (await world.check(own.id, [WRONG], address="192.0.2.1")).quotas[0].remaining == 31
    assert (await world.check(own.id, [WRONG])).quotas[0].remaining == 30  # without an address there is no share
    assert (await world.check(own.id, [RIGHT], address="192.0.2.1")).status is Status.VERIFIED


async def test_the_share_of_an_address_is_never_less_than_one_verification_can_cost(world: World) -> None:
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 18, DAY))
    verification = await world.start(RIGHT)
    await world.resend(verification, SECOND)
    await world.resend(verification, THIRD)

    results = [await world.check(verification.id, [WRONG], address="192.0.2.1") for _ in range(5)]

    assert [result.quotas[0].remaining for result in results] == [15, 12, 9, 6, 3]
    assert results[-1].status is Status.LOCKED


async def test_of_fifty_guesses_at_once_an_address_gets_its_share(world: World) -> None:
    world.policy = replace(POLICY, checks=50, failed_checks_per_phone=Limit("failed_checks_per_phone", 500, DAY))
    ids = [
        (await world.start(address=f"192.0.2.{it}", policy=replace(POLICY, cooldowns=(timedelta(),)))).id
        for it in range(5)
    ]

    guesses = [world.check(name, [WRONG], address="192.0.2.66") for name in ids for _ in range(50)]
    results = await asyncio.gather(*guesses, return_exceptions=True)

    assert (
        sum(isinstance(result, CheckOutcome) for result in results) == 25
    )  # five of each verification, all below the share


async def test_a_right_check_repeated_gives_the_proof_again(world: World) -> None:
    """Its answer may have been lost. Nobody else is verified by it, and no other code is."""
    verification = await world.start()
    guess = replace(world.guess([RIGHT]), retry_digest="d1")
    first = expect(CheckPassed, await world.store.check_by_id(verification.id, guess, POLICY))

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


async def test_a_right_check_by_phone_repeated_gives_the_proof_of_the_same_verification(world: World) -> None:
    first = await world.start(RIGHT)
    guess = replace(world.guess([RIGHT]), retry_digest="d1")
    await world.store.check_by_phone(PHONE, "login", guess, POLICY)
    await world.advance(timedelta(seconds=120))
    await world.start(SECOND)

    again = expect(CheckPassed, await world.store.check_by_phone(PHONE, "login", guess, POLICY))

    assert (again.verification_id, again.status, again.is_repeated) == (first.id, Status.VERIFIED, True)


async def test_a_wrong_check_repeated_is_counted_again(world: World) -> None:
    verification = await world.start()
    guess = replace(world.guess([WRONG]), retry_digest="d1")

    results = [await world.store.check_by_id(verification.id, guess, POLICY) for _ in range(2)]

    assert [expect(WrongCode, result).checks_left for result in results] == [4, 3]


async def test_after_its_lifetime_a_verification_is_gone(world: World) -> None:
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


async def test_a_second_start_within_the_cooldown_is_refused_and_changes_nothing(world: World) -> None:
    verification = await world.start()

    await world.place(verification)
    for named in (None, verification):
        with pytest.raises(CallCooldown) as caught:
            await world.start(SECOND, resend_of=named)
        assert caught.value.verification_id == (named and named.id)
        assert 50 <= caught.value.retry_after <= 60

    reading = await world.store.read(verification.id, client="shop")
    assert reading.calls_placed == 1


async def test_the_cooldown_is_the_phones_whoever_asks_and_whatever_for(world: World) -> None:
    await world.start()

    for client, purpose in (("shop", "password_reset"), ("other", "login")):
        with pytest.raises(CallCooldown) as caught:
            await world.start(client=client, purpose=purpose)
        assert caught.value.verification_id is None


async def test_a_resend_keeps_the_verification_its_checks_and_its_older_codes(world: World) -> None:
    first = await world.start(RIGHT)
    await world.check(first.id, [WRONG])

    second = await world.resend(first, SECOND)

    assert second.id == first.id
    assert (second.calls_placed, second.calls_left, second.checks_left) == (2, 1, 4)
    assert (await world.check(first.id, [RIGHT])).status is Status.VERIFIED


async def test_each_code_lives_for_its_own_time(world: World) -> None:
    verification = await world.start(RIGHT)
    await world.resend(verification, SECOND)
    await world.advance(LIFETIME - timedelta(seconds=60))

    expired = await world.check(verification.id, [RIGHT])
    alive = await world.check(verification.id, [SECOND])

    assert (expired.status, alive.status) == (Status.PENDING, Status.VERIFIED)


async def test_cooldowns_grow_with_every_call_of_a_phone(world: World) -> None:
    policy = replace(POLICY, calls=5)
    waits = []
    for _ in range(4):
        verification = await world.start(policy=policy)
        assert verification.resend_in is not None
        waits.append(verification.resend_in)
        await world.advance(timedelta(seconds=verification.resend_in))

    assert waits == [60, 120, 300, 300]


async def test_canceling_and_starting_again_does_not_shorten_the_cooldown(world: World) -> None:
    first = await world.start()
    await world.store.cancel("shop", first.id)

    with pytest.raises(CallCooldown) as caught:
        await world.start()
    assert caught.value.verification_id is None

    await world.advance(timedelta(seconds=60))
    second = await world.start()
    assert second.id != first.id
    assert second.resend_in == 120


async def test_a_streak_of_calls_is_forgotten_only_after_the_longest_cooldown(world: World) -> None:
    await world.start()
    await world.advance(timedelta(seconds=359))
    assert (await world.start()).resend_in == 120

    await world.advance(timedelta(seconds=420))
    assert (await world.start()).resend_in == 60


async def test_calls_of_a_verification_are_limited(world: World) -> None:
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


async def test_after_success_a_start_makes_a_new_verification(world: World) -> None:
    first = await world.start()
    await world.check(first.id, [RIGHT])
    await world.advance(timedelta(seconds=60))

    second = await world.start(SECOND)

    assert second.id != first.id
    assert second.checks_left == 5
    with pytest.raises(VerificationAlreadyUsed):
        await world.check(first.id, [RIGHT])


async def test_a_canceled_verification_verifies_no_more(world: World) -> None:
    verification = await world.start()

    canceled = await world.store.cancel("shop", verification.id)
    again = await world.store.cancel("shop", verification.id)

    assert canceled.status is again.status is Status.CANCELED
    assert canceled.resend_in is None
    with pytest.raises(VerificationAlreadyCanceled):
        await world.check(verification.id, [RIGHT])


async def test_what_is_final_cannot_be_canceled(world: World) -> None:
    verified = await world.start()
    await world.check(verified.id, [RIGHT])
    with pytest.raises(VerificationAlreadyUsed):
        await world.store.cancel("shop", verified.id)

    locked = await world.start(phone=Phone("+79007654321"))
    await world.lock(locked)
    with pytest.raises(VerificationLocked):
        await world.store.cancel("shop", locked.id)


async def test_a_recorded_call_is_read_back(world: World) -> None:
    verification = await world.start()

    recorded = (
        await world.store.record_call(
            verification, 1, CallUpdate(state=CallState(CallStatus.RINGING, "rerouted"), ref="ref-1")
        )
    ).verification

    call = recorded.latest_call
    assert call is not None
    assert (call.call_number, call.ref, call.state) == (1, "ref-1", CallState(CallStatus.RINGING, "rerouted"))


async def test_a_final_call_state_stays(world: World) -> None:
    verification = await world.start()
    await world.store.record_call(verification, 1, _update(CallStatus.BUSY))

    after = (await world.store.record_call(verification, 1, _update(CallStatus.RINGING))).verification

    assert [call.state.status for call in after.calls] == [CallStatus.BUSY]


async def test_a_call_never_goes_back(world: World) -> None:
    verification = await world.start()
    await world.store.record_call(verification, 1, _update(CallStatus.ANSWERED))

    recorded = await world.store.record_call(verification, 1, _update(CallStatus.RINGING))

    assert [call.state.status for call in recorded.verification.calls] == [CallStatus.ANSWERED]


async def test_of_many_reports_of_the_end_of_a_call_one_has_ended_it(world: World) -> None:
    verification = await world.start()

    reports = [world.store.record_call(verification, 1, _update(CallStatus.COMPLETED)) for _ in range(100)]

    assert sum(recorded.ended for recorded in await asyncio.gather(*reports)) == 1


async def test_whoever_knows_the_code_has_heard_it(world: World) -> None:
    verification = await world.start()
    await world.store.record_call(verification, 1, _update(CallStatus.UNCONFIRMED, ref=None))

    await world.check(verification.id, [RIGHT])

    read = await world.store.read(verification.id, client="shop")
    assert [call.state.status for call in read.calls] == [CallStatus.ANSWERED]


async def test_a_code_that_the_provider_chose_verifies_and_ours_does_not(world: World) -> None:
    verification = await world.start(channel=Channel.FLASH_CALL)
    report = _update(CallStatus.INITIATED, code_digest=SECOND, code_length=4)
    await world.store.record_call(verification, 1, report)
    world.lengths[SECOND] = 4

    assert (await world.check(verification.id, [RIGHT])).status is Status.PENDING
    assert (await world.check(verification.id, [SECOND])).status is Status.VERIFIED


async def test_a_call_in_place_of_a_refused_one_has_the_new_code_alone(world: World) -> None:
    refused = await world.start()
    await world.refund(refused, 1)

    placed = await world.start(SECOND, channel=Channel.FLASH_CALL)

    assert (placed.channel, placed.code_length, placed.checks_left) == (Channel.FLASH_CALL, 4, 3)
    assert (placed.calls_placed, placed.calls_left, placed.resend_in) == (1, 2, 60)
    world.lengths[RIGHT] = 4
    assert (await world.check(placed.id, [RIGHT])).status is Status.PENDING
    assert (await world.check(placed.id, [SECOND])).status is Status.VERIFIED


async def test_a_channel_with_a_tighter_budget_leaves_at_least_one_check(world: World) -> None:
    verification = await world.start()
    for _ in range(4):
        await world.check(verification.id, [WRONG])

    again = await world.again(verification, SECOND, channel=Channel.FLASH_CALL)
    assert again.checks_left == 1
    again = await world.place(again)

    assert again.checks_left == 1
    assert (await world.check(verification.id, [SECOND])).status is Status.VERIFIED


async def test_what_was_tried_is_told(world: World) -> None:
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


async def test_a_reverse_call_verifies_without_a_code_once_the_person_has_dialled(world: World) -> None:
    verification = await world.reverse_call()
    assert (await world.check(verification.id, [])).status is Status.PENDING
    await world.advance(timedelta(seconds=5))

    assert await world.dial(verification) is Confirmation.CONFIRMED
    assert await world.dial(verification) is Confirmation.CONFIRMED_BEFORE

    result = expect(CheckPassed, await world.check(verification.id, []))
    assert (result.status, result.phone) == (Status.VERIFIED, PHONE)
    with pytest.raises(VerificationAlreadyUsed):
        await world.check(verification.id, [])
    assert await world.dial(verification) is Confirmation.CONFIRMED_BEFORE


async def test_of_a_hundred_checks_of_a_reverse_call_one_verifies(world: World) -> None:
    verification = await world.reverse_call()
    await world.advance(timedelta(seconds=5))
    confirmations = await asyncio.gather(*(world.dial(verification) for _ in range(100)))
    assert confirmations.count(Confirmation.CONFIRMED) == 1

    results = await asyncio.gather(*(world.check(verification.id, []) for _ in range(100)), return_exceptions=True)

    assert sum(isinstance(result, CheckOutcome) for result in results) == 1


async def test_a_hook_confirms_nothing_but_the_call_of_that_phone_by_its_own_name(world: World) -> None:
    verification = await world.reverse_call()
    assert await world.dial(verification) is Confirmation.TOO_EARLY
    await world.advance(timedelta(seconds=5))

    assert await world.dial(verification, ref="another") is Confirmation.NOT_FOUND
    assert await world.dial(verification, caller=DIAL) is Confirmation.NOT_THE_CALLER
    assert (
        await world.store.confirm(verification, 2, ref="ref-1", caller=PHONE, policy=POLICY) is Confirmation.NOT_FOUND
    )
    assert (await world.check(verification.id, [])).status is Status.PENDING


async def test_a_call_with_a_code_is_not_confirmed_by_a_hook(world: World) -> None:
    verification = await world.start()
    await world.store.record_call(verification, 1, _update(CallStatus.INITIATED))
    await world.advance(timedelta(seconds=5))

    assert await world.dial(verification) is Confirmation.NOT_FOUND
    with pytest.raises(CodeRequired):
        await world.check(verification.id, [])


async def test_what_was_canceled_or_is_over_is_not_confirmed(world: World) -> None:
    verification = await world.reverse_call()
    await world.advance(timedelta(seconds=5))
    await world.store.cancel("shop", verification.id)

    assert await world.dial(verification) is Confirmation.NOT_FOUND


async def test_a_reverse_call_that_was_confirmed_is_worth_nothing_after_its_time(world: World) -> None:
    verification = await world.reverse_call()
    await world.advance(timedelta(seconds=250))
    assert await world.dial(verification) is Confirmation.CONFIRMED
    await world.advance(timedelta(seconds=60))

    with pytest.raises(VerificationNotFound):
        await world.check(verification.id, [])


async def test_the_id_of_a_reverse_call_is_told_to_nobody_but_who_asked(world: World) -> None:
    """It is all that proves who asked: another session could wait with it until the person has dialled."""
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


async def test_a_verification_with_a_code_and_a_reverse_call_have_nothing_in_common(world: World) -> None:
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


async def test_one_reverse_call_of_a_phone_is_live_at_a_time_whoever_asks(world: World) -> None:
    """Else whoever dials for one may confirm another: a provider may tell both to dial the same number."""
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


async def test_a_reverse_call_never_shares_a_verification(world: World) -> None:
    """Neither does it join the one that is named, nor can another call join its own."""
    coded = await world.start(RIGHT)
    await world.advance(timedelta(seconds=60))
    reverse = await world.start(channel=Channel.REVERSE_CALL, resend_of=coded)
    await world.advance(timedelta(seconds=120))
    other = await world.start(SECOND, resend_of=reverse)

    assert len({coded.id, reverse.id, other.id}) == 3
    assert (await world.check(coded.id, [RIGHT])).status is Status.VERIFIED


async def test_of_fifty_reverse_calls_at_once_one_is_started(world: World) -> None:
    policy = replace(POLICY, cooldowns=(timedelta(),))
    starts = [
        world.start(client=f"client-{number}", channel=Channel.REVERSE_CALL, policy=policy) for number in range(50)
    ]

    started = await asyncio.gather(*starts, return_exceptions=True)

    assert sum(isinstance(it, CallCooldown) for it in started) == 49


async def test_a_code_of_another_length_is_refused_and_costs_nothing(world: World) -> None:
    verification = await world.start()

    for length in (4, 5):
        with pytest.raises(CodeTooShortOrLong) as refused:
            await world.store.check_by_id(
                verification.id, CodeCheck(client="shop", candidates=[WRONG], length=length), POLICY
            )
        assert refused.value.lengths == {6}

    assert expect(WrongCode, await world.check(verification.id, [WRONG])).checks_left == 4
    again = await world.resend(verification, SECOND, channel=Channel.FLASH_CALL)
    assert (await world.check(again.id, [WRONG])).status is Status.PENDING
    assert (await world.check(again.id, [RIGHT])).status is Status.VERIFIED


async def test_a_code_for_a_reverse_call_is_refused_and_costs_nothing(world: World) -> None:
    verification = await world.reverse_call()

    with pytest.raises(CodeNotExpected):
        await world.check(verification.id, [WRONG])

    assert expect(Waiting, await world.check(verification.id, [])).checks_left == verification.checks_left


async def test_a_refused_call_of_another_channel_leaves_what_is_pending_as_it_was(world: World) -> None:
    coded = await world.start(RIGHT)
    for channel in (Channel.REVERSE_CALL, Channel.FLASH_CALL):
        refused = await world.again(coded, SECOND, channel=channel)
        await world.refund(refused, refused.calls[-1].call_number)

    after = await world.store.read(coded.id, client="shop")
    assert (after.channel, after.code_length, after.checks_left) == (Channel.VOICE, 6, 5)
    assert (after.calls_placed, after.calls_left) == (1, 2)
    assert (await world.start(THIRD, resend_of=coded)).id == coded.id
    assert (await world.check_phone([RIGHT])).status is Status.VERIFIED


async def test_a_refused_call_leaves_a_reverse_call_as_it_was(world: World) -> None:
    reverse = await world.reverse_call()
    await world.advance(timedelta(seconds=120))
    refused = await world.start(SECOND)
    await world.refund(refused, 1)

    assert await world.dial(reverse) is Confirmation.CONFIRMED
    assert (await world.check(reverse.id, [])).status is Status.VERIFIED


async def test_wrong_codes_before_a_refused_call_stay_counted(world: World) -> None:
    coded = await world.start(RIGHT)
    await world.check(coded.id, [WRONG])
    refused = await world.again(coded, SECOND, channel=Channel.FLASH_CALL)
    await world.check(coded.id, [WRONG])
    await world.refund(refused, 2)

    world.lengths[WRONG] = 6
    assert expect(WrongCode, await world.check(coded.id, [WRONG])).checks_left == 2


async def test_a_call_that_is_not_placed_yet_makes_no_budget_smaller(world: World) -> None:
    """A start that the provider refuses must not lock what three wrong codes had left open."""
    coded = await world.start(RIGHT)
    for _ in range(3):
        await world.check(coded.id, [WRONG])
    refused = await world.again(coded, SECOND, channel=Channel.FLASH_CALL)
    world.lengths[WRONG] = 6
    assert (await world.check(coded.id, [WRONG])).status is Status.PENDING
    await world.refund(refused, 2)

    assert (await world.store.read(coded.id, client="shop")).checks_left == 1
    assert (await world.check(coded.id, [RIGHT])).status is Status.VERIFIED


async def test_taking_a_call_of_a_locked_verification_back_gives_no_checks_back(world: World) -> None:
    coded = await world.start(RIGHT)
    refused = await world.again(coded, SECOND, channel=Channel.FLASH_CALL)
    for _ in range(5):
        await world.check(coded.id, [WRONG])

    await world.refund(refused, 2)

    after = await world.store.read(refused.id, client="shop")
    assert (after.status, after.checks_left) == (Status.LOCKED, 0)


async def test_a_reverse_call_that_waits_is_told_as_tried_to_everybody(world: World) -> None:
    reverse = await world.reverse_call()
    history = await world.history("bank")
    assert list(history.calls) == [(Channel.REVERSE_CALL, CallStatus.INITIATED)]

    await world.store.cancel("shop", reverse.id)

    assert not (await world.history("bank")).calls


async def test_each_change_has_a_higher_version(redis: Redis, store: RedisVerificationStore) -> None:
    world = World(store, lambda duration: age(redis, duration))
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


async def test_a_verification_whose_calls_all_failed_has_failed(world: World) -> None:
    policy = replace(POLICY, calls=1)
    verification = await world.start(policy=policy)

    after = (await world.store.record_call(verification, 1, _update(CallStatus.NO_ANSWER))).verification

    assert after.status is Status.FAILED


async def test_taking_the_only_call_back_leaves_nothing(world: World) -> None:
    verification = await world.start()

    await world.refund(verification, 1)

    with pytest.raises(VerificationNotFound):
        await world.store.read(verification.id, client="shop")
    again = await world.start()
    assert (again.calls_placed, again.resend_in) == (1, 60)


async def test_taking_a_resend_back_leaves_the_first_call_as_it_was(world: World) -> None:
    first = await world.start(RIGHT)
    second = await world.again(first, SECOND)

    await world.refund(second, 2)

    after = await world.store.read(first.id, client="shop")
    assert (after.calls_placed, after.calls_left, after.resend_in) == (1, 2, 0)
    assert after.expires_at <= after.created_at + LIFETIME
    assert [call.call_number for call in after.calls] == [1]
    assert (await world.check(first.id, [SECOND])).status is Status.PENDING
    assert (await world.check(first.id, [RIGHT])).status is Status.VERIFIED


async def test_taking_back_twice_is_harmless_even_after_a_new_call(world: World) -> None:
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


async def test_guesses_stay_counted_for_the_phone_when_the_call_is_taken_back(world: World) -> None:
    """Else a provider that refuses every call would let somebody guess for ever at codes never spoken."""
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 5, DAY))
    for _ in range(5):
        verification = await world.start(policy=world.policy)
        await world.check(verification.id, [WRONG])
        await world.refund(verification, 1)

    with pytest.raises(RateLimited, match="failed_checks_per_phone"):
        await world.start(policy=world.policy)


async def test_a_refused_start_leaves_the_phone_as_it_was(world: World) -> None:
    """The next cooldown is as long, the next call as many, as if it had never been."""
    first = await world.start()
    await world.place(first)
    await world.advance(timedelta(seconds=100))
    for _ in range(5):
        await world.refund(await world.start(SECOND), 1)
    await world.refund(await world.start(SECOND, resend_of=first), 2)

    again = await world.start(SECOND)

    assert again.resend_in == 120
    assert (await world.check_phone([RIGHT])).verification_id == first.id


async def test_taking_back_after_an_older_code_verified_changes_no_success(world: World) -> None:
    first = await world.start(RIGHT)
    second = await world.again(first, SECOND)
    await world.check(first.id, [RIGHT])

    await world.refund(second, 2)

    assert (await world.store.read(first.id, client="shop")).status is Status.VERIFIED


async def test_of_a_hundred_right_checks_at_once_one_verifies(world: World) -> None:
    verification = await world.start()

    checks = [world.check(verification.id, [RIGHT]) for _ in range(100)]
    results = await asyncio.gather(*checks, return_exceptions=True)

    refused = [result for result in results if isinstance(result, VerificationAlreadyUsed)]
    assert (len(refused), len(results)) == (99, 100)


async def test_of_a_hundred_wrong_checks_at_once_five_count(world: World) -> None:
    verification = await world.start()

    checks = [world.check(verification.id, [WRONG]) for _ in range(100)]
    results = await asyncio.gather(*checks, return_exceptions=True)

    assert sum(isinstance(result, VerificationLocked) for result in results) == 95


async def test_of_a_hundred_refunds_at_once_one_undoes_the_call(world: World) -> None:
    first = await world.place(await world.start())
    second = await world.again(first, SECOND)

    assert sum(await asyncio.gather(*(world.refund(second, 2) for _ in range(100)))) == 1
    assert (await world.store.read(first.id, client="shop")).calls_left == 2


async def test_of_a_hundred_cancellations_at_once_one_changes_it(world: World) -> None:
    before = await world.place(await world.start())

    canceled = await asyncio.gather(*(world.store.cancel("shop", before.id) for _ in range(100)))

    assert {(it.status, it.version - before.version) for it in canceled} <= {(Status.CANCELED, 0), (Status.CANCELED, 1)}


async def test_of_fifty_starts_at_once_one_places_a_call(world: World) -> None:
    results = await asyncio.gather(*[world.start() for _ in range(50)], return_exceptions=True)

    assert sum(isinstance(result, Verification) for result in results) == 1
    assert sum(isinstance(result, CallCooldown) for result in results) == 49


async def test_calls_of_a_phone_are_limited_in_every_hour_and_day(world: World) -> None:
    """Whatever the client, purpose or verification: what is counted is the phone."""
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


async def test_a_call_taken_back_makes_room_for_another(world: World) -> None:
    policy = replace(POLICY, calls_per_phone=(Limit("calls_per_phone_hour", 1, HOUR),))
    verification = await world.start(policy=policy)
    await world.refund(verification, 1)

    await world.start(policy=policy)


async def test_failed_checks_of_a_phone_are_limited_over_all_its_verifications(world: World) -> None:
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
    with pytest.raises(RateLimited, match="failed_checks_per_phone"):  # a call whose code nobody may check
        await world.start(policy=world.policy)

    await world.advance(DAY)
    third = await world.start(policy=world.policy)
    assert (await world.check(third.id, [RIGHT])).status is Status.VERIFIED


async def test_right_checks_are_not_counted_as_failed(world: World) -> None:
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 1, DAY))
    for _ in range(3):
        verification = await world.start()
        assert (await world.check(verification.id, [RIGHT])).status is Status.VERIFIED
        await world.advance(LIFETIME)


async def test_a_failed_check_counts_for_the_phone_once_for_each_live_code(world: World) -> None:
    """Each is a chance to be right: else whoever asks for three calls before guessing is three times as lucky."""
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 5, DAY))
    verification = await world.start()
    assert (await world.check(verification.id, [WRONG])).quotas[0].remaining == 4
    await world.resend(verification, SECOND)

    assert (await world.check(verification.id, [WRONG])).quotas[0].remaining == 2
    result = expect(WrongCode, await world.check(verification.id, [WRONG]))
    assert (result.quotas[0].remaining, result.checks_left) == (0, 2)
    with pytest.raises(RateLimited, match="failed_checks_per_phone"):
        await world.check(verification.id, [RIGHT])


async def test_the_last_failed_check_leaves_nothing_and_not_less(world: World) -> None:
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 1, DAY))
    verification = await world.start()
    await world.resend(verification, SECOND)

    assert (await world.check(verification.id, [WRONG])).quotas[0].remaining == 0


async def test_failed_checks_of_an_address_and_a_client_are_limited_over_all_phones(world: World) -> None:
    """One guess against each of many phones is an attack too."""
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


async def test_a_test_number_has_no_cooldown_and_counts_against_nothing(world: World) -> None:
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
        result = expect(CheckPassed, await world.check(verification.id, [RIGHT]))
        assert (result.status, result.test) == (Status.VERIFIED, True)
    assert len(ids) == 5


async def test_quotas_tell_what_remains(world: World) -> None:
    call = NewCall(
        client="shop", phone=PHONE, purpose="login", channel=Channel.VOICE, code_digest=RIGHT, code_length=6, checks=5
    )
    preview = await world.store.preview_start(call, POLICY)
    started = await world.store.start(preview.call_id, call, POLICY)
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


async def test_a_guess_beyond_the_phones_budget_is_not_held_against_the_last_codes_either(world: World) -> None:
    """With three live codes a guess is three comparisons: for the second one there is no room among four."""
    world.policy = replace(POLICY, failed_checks_per_phone=Limit("failed_checks_per_phone", 4, DAY))
    verification = await world.start(RIGHT)
    await world.resend(verification, SECOND)
    await world.resend(verification, THIRD)

    assert expect(WrongCode, await world.check(verification.id, [WRONG])).checks_left == 4
    with pytest.raises(RateLimited, match="failed_checks_per_phone"):
        await world.check(verification.id, [RIGHT])


async def test_a_test_verification_is_not_gone_on_with_once_its_number_is_an_ordinary_one(world: World) -> None:
    test = await world.start(test=True)

    ordinary = await world.start(SECOND)

    assert ordinary.id != test.id
    assert not ordinary.test
    assert (await world.check(ordinary.id, [RIGHT])).status is Status.PENDING


async def test_of_two_resends_at_once_the_refused_one_does_not_refund_the_other(world: World) -> None:
    """Both were told in the preview that theirs would be the second call."""
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
    name = (await world.store.preview_start(second, policy)).call_id
    placed = (await world.store.start(name, second, policy)).verification

    with pytest.raises(CallCooldown):
        await world.store.start(name, replace(second, token="loser"), policy)
    undone = await world.store.refund(name, phone=PHONE, client="shop", policy=policy, token="loser")
    await world.place(placed)
    late = await world.store.refund(name, phone=PHONE, client="shop", policy=policy, token="winner")

    assert (name, undone, late) == (CallId(first.id, 2), False, False)
    assert (await world.store.read(first.id, client="shop")).calls_placed == 2
    assert (await world.check(first.id, [SECOND])).status is Status.VERIFIED


async def test_while_the_provider_is_asked_nobody_is_told_to_wait_for_a_call_that_may_not_be(world: World) -> None:
    """It may refuse. Once a call was placed, or the time to answer is over, the whole cooldown holds."""
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


async def test_a_provider_that_refuses_for_ever_is_not_asked_for_ever(world: World) -> None:
    first = await world.place(await world.start(policy=replace(POLICY, cooldowns=(timedelta(),))))
    policy = replace(POLICY, cooldowns=(timedelta(),))
    for number in range(2, 101):
        await world.refund(await world.start(SECOND, resend_of=first, policy=policy), number)

    with pytest.raises(RateLimited, match="calls_per_verification"):
        await world.start(SECOND, resend_of=first, policy=policy)
    assert (await world.check(first.id, [RIGHT])).status is Status.VERIFIED
