"""The contract of a start that counts its call in further limits: it takes all of them, or changes nothing."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.verification.channels import Channel
from app.verification.errors import CallBudgetExhausted, CallCooldown, LimitReached, RateLimited, VerificationNotFound
from app.verification.phone import Phone
from app.verification.policy import DAY, HOUR, Allowance, Limit, Policy
from app.verification.ports import CallId, NewCall, RateLimiter, StoredCall, VerificationStore
from tests.ageing import age
from tests.fakes import FakeGuard, FakeRateLimiter, ReferenceStore
from tests.limiters import make_limiter
from tests.policies import make_guard_rules, make_policy

pytestmark = pytest.mark.standalone  # on a cluster the limits are acquired before, since they are in other slots

PHONE, OTHER_PHONE = Phone("+79001234567"), Phone("+79117654321")
CODE = b"c" * 32
KEY = b"k" * 32
MATURE = timedelta(minutes=10)


def new_call(phone: Phone, *, token: str, resend_of: str | None = None) -> NewCall:
    return NewCall(
        client="shop",
        phone=phone,
        purpose="login",
        channel=Channel.VOICE,
        code_digest=CODE,
        code_length=4,
        checks=5,
        token=token,
        resend_of=resend_of,
    )


@dataclass
class Shop:
    """A store and the limits that its starts count in."""

    store: VerificationStore
    limits: RateLimiter

    def allowances(self, policy: Policy, phone: Phone = PHONE) -> Sequence[Allowance]:
        return policy.for_calls(client="shop", phone=phone, address="192.0.2.1")

    async def start(
        self, policy: Policy, phone: Phone = PHONE, *, token: str = "", resend_of: str | None = None
    ) -> StoredCall:
        call = new_call(phone, token=token or secrets.token_hex(6), resend_of=resend_of)
        call_id = CallId(self.store.new_id(phone), 1)
        return await self.store.start(call_id, call, policy, self.allowances(policy, phone))


@pytest.fixture(params=["reference", pytest.param("redis", marks=pytest.mark.uses_redis)])
def shop(request: pytest.FixtureRequest) -> Shop:
    if request.param == "reference":
        fake = ReferenceStore()
        return Shop(fake, FakeRateLimiter(fake, FakeGuard()))
    redis: Redis = request.getfixturevalue("redis")
    runner = ScriptRunner(redis, timeout=5)
    limits = make_limiter(redis, key=KEY, runner=runner)
    return Shop(RedisVerificationStore(runner, phone_key=KEY, limits=limits), limits)


def only(limit: str, count: int) -> Policy:
    """Return a policy in which one further limit can be reached."""
    reached = Limit(limit, count, DAY if limit == "calls_per_day" else HOUR)
    return make_policy(**{limit: (reached,) if limit == "calls_per_client" else reached})


async def test_a_start_counts_once_in_each_limit_and_says_what_is_left(shop: Shop) -> None:
    policy = replace(only("calls_per_client", 70), calls_per_day=Limit("calls_per_day", 3, DAY))

    first = await shop.start(policy)
    second = await shop.start(policy, OTHER_PHONE)

    for stored, left in ((first, (2, 69)), (second, (1, 68))):
        remaining = {quota.limit.name: quota.remaining for quota in stored.quotas}
        assert (remaining["calls_per_day"], remaining["calls_per_client"]) == left
    names = [quota.limit.name for quota in first.quotas]
    assert names == [*(it.name for it in policy.calls_per_phone), *(it.limit.name for it in shop.allowances(policy))]


@pytest.mark.parametrize("limit", ["calls_per_address", "calls_per_range", "calls_per_client", "calls_per_day"])
async def test_a_start_that_a_limit_refuses_changes_neither_the_phone_nor_another_limit(shop: Shop, limit: str) -> None:
    policy = only(limit, 1)
    neighbour = Phone("+79001234568")
    await shop.start(policy)

    for _ in range(3):
        with pytest.raises((RateLimited, CallBudgetExhausted)) as caught:
            await shop.start(policy, neighbour)

    assert caught.value.limit == limit
    stored = await shop.start(make_policy(), neighbour)  # has no cooldown
    remaining = [quota.limit.count - quota.remaining for quota in stored.quotas]
    phones = len(policy.calls_per_phone)
    assert remaining == [1] * phones + [2] * (len(remaining) - phones)


async def test_a_start_that_the_phone_refuses_counts_in_no_limit(shop: Shop) -> None:
    policy = only("calls_per_day", 2)
    await shop.start(policy)

    for _ in range(3):
        with pytest.raises(CallCooldown):
            await shop.start(policy)
    with pytest.raises(VerificationNotFound):
        await shop.start(policy, OTHER_PHONE, resend_of=shop.store.new_id(OTHER_PHONE))

    await shop.start(policy, OTHER_PHONE)


@pytest.mark.parametrize("count", [1, 100])  # counted by tokens, and by sub-windows
async def test_the_token_of_a_stored_call_refunds_it_in_each_limit(shop: Shop, count: int) -> None:
    policy = only("calls_per_day", count)
    stored = await shop.start(policy)

    await shop.limits.refund(stored.limits_token, shop.allowances(policy))

    again = await shop.start(policy, OTHER_PHONE)
    assert {quota.remaining for quota in again.quotas if quota.limit.name == "calls_per_day"} == {count - 1}


@pytest.mark.parametrize("count", [1, 100])
async def test_the_refund_of_a_call_refunds_it_in_each_limit_once(shop: Shop, count: int) -> None:
    """Nothing that the reply to the start says is needed: it may have been lost."""
    policy, phone, token = only("calls_per_day", count), Phone("+79161234567"), secrets.token_hex(6)
    others = min(count - 1, 2)
    for other in (OTHER_PHONE, PHONE)[:others]:
        await shop.start(policy, other)
    stored = await shop.start(policy, phone, token=token)
    call_id, allowances = CallId(stored.verification.id, 1), shop.allowances(policy, phone)

    refunds = [
        await shop.store.refund(
            call_id, phone=phone, client="shop", policy=policy, token=refunded, allowances=allowances
        )
        for refunded in ("another", token, token, token)
    ]

    assert refunds == [False, True, False, False]
    again = await shop.start(policy, phone)
    left = {quota.limit.name: quota.remaining for quota in again.quotas}
    assert left["calls_per_day"] == count - others - 1
    assert left["calls_per_range"] == policy.calls_per_range.count - 1


async def test_of_many_starts_at_once_as_many_are_stored_as_the_limit_has_room_for(shop: Shop) -> None:
    policy = only("calls_per_client", 7)
    phones = [Phone(f"+790{number:02d}1234567") for number in range(50)]

    results = await asyncio.gather(*(shop.start(policy, phone) for phone in phones), return_exceptions=True)

    assert len([it for it in results if isinstance(it, StoredCall)]) == 7
    assert {it.limit for it in results if isinstance(it, LimitReached)} == {"calls_per_client"}


@pytest.mark.uses_redis
async def test_no_call_is_stored_whose_allowances_would_not_be_counted(redis: Redis) -> None:
    runner = ScriptRunner(redis, timeout=5)
    limits = make_limiter(redis, key=KEY, runner=runner)
    without_limits = RedisVerificationStore(runner, phone_key=KEY)
    allowances = make_policy().for_calls(client="shop", phone=PHONE, address=None)
    call = new_call(PHONE, token="")

    assert without_limits.counts_in_allowances is False
    with_limits = RedisVerificationStore(runner, phone_key=KEY, limits=limits)
    for store, uncounted in ((without_limits, replace(call, token="0" * 12)), (with_limits, call)):
        with pytest.raises(ValueError, match="counted"):
            await store.start(CallId(store.new_id(PHONE), 1), uncounted, make_policy(), allowances)
    assert await redis.dbsize() == 0


@pytest.mark.uses_redis
async def test_the_guard_blocks_a_range_in_the_script_of_a_start(redis: Redis) -> None:
    runner = ScriptRunner(redis, timeout=5)
    limits = make_limiter(redis, make_guard_rules(min_calls=3), key=KEY, runner=runner)
    shop = Shop(RedisVerificationStore(runner, phone_key=KEY, limits=limits), limits)
    for number in range(3):
        await shop.start(make_policy(), Phone(f"+7900123456{number}"))
    await age(redis, MATURE)

    for _ in range(2):
        with pytest.raises(RateLimited) as caught:
            await shop.start(make_policy(), Phone("+79001234569"))

        assert (caught.value.limit, caught.value.retry_after) == ("fraud_guard", 3600)
    await shop.start(make_policy(), OTHER_PHONE)
