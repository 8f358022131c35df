"""The fraud guard on a real Redis: whom it blocks, for how long, and above all whom it does not."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from app.store.fraud_guard import RedisFraudGuard
from app.store.scripts import ScriptRunner
from app.verification.errors import RateLimited, StoreUnavailable
from app.verification.fraud_guard import Evidence, range_of
from app.verification.phone import Phone
from tests.ageing import age
from tests.policies import make_guard_rules

RULES = make_guard_rules()
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
MATURE = RULES.maturity + MINUTE  # a call is judged by the minute in which it was placed
PUMPED, OTHER = "+79001234", "+79161234"

Guard = Callable[..., RedisFraudGuard]


def phones(number_range: str, count: int) -> list[Phone]:
    return [Phone(f"{number_range}{number:03}") for number in range(count)]


@dataclass
class World:
    """A guard, and the means to let time pass for it."""

    redis: Redis
    guard: RedisFraudGuard

    async def call(self, count: int, number_range: str = PUMPED, client: str = "shop", *, answered: int = 0) -> None:
        """Place calls; the first ``answered`` people type their codes."""
        called = phones(number_range, count)
        for phone in called:
            await self.guard.admit(phone, client)
        for phone in called[:answered]:
            await self.guard.succeeded(phone, client)

    async def pass_time(self, duration: timedelta) -> None:
        await age(self.redis, duration)

    async def refusal(self, number_range: str = PUMPED, client: str = "shop") -> RateLimited | None:
        """Try one more call."""
        try:
            await self.guard.admit(Phone(f"{number_range}999"), client)
        except RateLimited as refusal:
            return refusal
        return None

    async def block(self) -> int:
        """Have the pumped range blocked, and tell for how long."""
        await self.call(20)
        await self.pass_time(MATURE)
        refusal = await self.refusal()
        assert refusal is not None
        return refusal.retry_after


@pytest.fixture
def make_guard(redis: Redis) -> Guard:
    return lambda rules=RULES: RedisFraudGuard(ScriptRunner(redis, timeout=1), rules)


@pytest.fixture
def world(redis: Redis, make_guard: Guard) -> World:
    return World(redis, make_guard())


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.message == name]


def test_a_range_is_a_thousand_numbers() -> None:
    assert range_of(Phone("+79001234567")) == "+79001234"


async def test_a_range_of_which_nobody_types_a_code_is_blocked(world: World) -> None:
    await world.call(20)
    await world.pass_time(MATURE)

    refusal = await world.refusal()

    assert refusal is not None
    assert (refusal.limit, refusal.retry_after) == ("fraud_guard", 3600)
    assert await world.refusal(OTHER) is None


async def test_a_look_judges_as_a_call_does_and_counts_nothing(world: World) -> None:
    """A start that another limit refuses gets no further, and calls that are to be judged grow old."""
    await world.call(20)
    for _ in range(50):
        await world.guard.require_open(Phone(f"{PUMPED}999"), "shop")
    await world.pass_time(MATURE)

    with pytest.raises(RateLimited, match="fraud_guard"):
        await world.guard.require_open(Phone(f"{PUMPED}999"), "shop")

    (block,) = await world.guard.blocks()
    assert (block.range, block.evidence.calls) == (PUMPED, 20)


async def test_the_block_ends_and_the_range_starts_afresh(world: World) -> None:
    await world.block()
    await world.pass_time(HOUR - MINUTE)
    assert await world.refusal() is not None

    await world.pass_time(MINUTE)

    await world.call(19)
    await world.pass_time(MATURE)
    assert await world.refusal() is None


@pytest.mark.parametrize(
    ("calls", "answered", "blocked"),
    [(19, 0, False), (20, 0, True), (20, 1, True), (20, 2, False), (30, 3, False), (31, 3, True), (20, 20, False)],
)
async def test_it_takes_enough_calls_and_a_conversion_below_the_threshold(
    world: World, calls: int, answered: int, *, blocked: bool
) -> None:
    await world.call(calls, answered=answered)
    await world.pass_time(MATURE)

    assert (await world.refusal() is not None) == blocked


async def test_calls_that_had_no_time_to_be_answered_are_not_held_against_anybody(world: World) -> None:
    """The first 100 people who answer an advertisement have typed no code yet."""
    await world.call(100)
    await world.pass_time(RULES.maturity - timedelta(seconds=10))
    assert await world.refusal() is None

    for phone in phones(PUMPED, 50):
        await world.guard.succeeded(phone, "shop")
    await world.pass_time(MATURE)

    assert await world.refusal() is None
    assert await world.guard.suspects() == []


async def test_only_the_last_hour_counts(world: World) -> None:
    await world.call(15)
    await world.pass_time(HOUR - MINUTE)
    await world.call(15)
    await world.pass_time(MATURE)

    assert await world.refusal() is None
    (key,) = [key async for key in world.redis.scan_iter("pv:{guard}:n:range:*")]
    assert await world.redis.hlen(key) == 5, "the first bucket is dropped: the serial, and two buckets of two fields"


async def test_successes_leave_the_hour_with_the_calls_beside_which_they_were_counted(world: World) -> None:
    await world.call(20, answered=20)
    await world.pass_time(HOUR - MATURE)
    await world.call(20)
    await world.pass_time(MATURE)

    assert await world.refusal() is not None


async def test_a_success_without_a_known_call_is_nothing(world: World) -> None:
    await world.guard.succeeded(Phone(f"{PUMPED}000"), "shop")

    assert await world.redis.keys() == []


async def test_blocks_grow_up_to_the_longest(world: World) -> None:
    hours = []
    for _ in range(6):
        hours.append(await world.block() // 3600)
        await world.pass_time(timedelta(hours=hours[-1]))

    assert hours == [1, 2, 4, 8, 12, 12]


async def test_the_level_is_forgotten_a_day_after_the_last_block(world: World) -> None:
    assert await world.block() == 3600
    await world.pass_time(HOUR + RULES.memory - HOUR)
    assert await world.block() == 2 * 3600

    await world.pass_time(2 * HOUR + RULES.memory)
    assert await world.block() == 3600


async def test_of_100_parallel_calls_at_the_threshold_all_are_refused_and_one_tells_of_the_block(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.call(20)
    await world.pass_time(MATURE)

    answers = await asyncio.gather(
        *(world.guard.admit(phone, "shop") for phone in phones(PUMPED, 100)), return_exceptions=True
    )

    assert all(isinstance(answer, RateLimited) for answer in answers)
    (event,) = events(caplog, "guard.blocked")
    assert vars(event) | {"range": PUMPED, "level": 1, "calls": 20, "conversion": 0.0} == vars(event)
    assert f"{PUMPED}0" not in str(vars(event)), "a range is no phone number"


async def test_of_100_parallel_calls_one_short_of_the_threshold_all_pass(world: World) -> None:
    await world.call(19)
    await world.pass_time(MATURE)

    await asyncio.gather(*(world.guard.admit(phone, "shop") for phone in phones(PUMPED, 100)))

    assert await world.guard.blocks() == []


async def test_100_parallel_calls_are_100_calls(world: World) -> None:
    await asyncio.gather(*(world.guard.admit(phone, "shop") for phone in phones(PUMPED, 100)))
    await world.pass_time(MATURE)
    await world.refusal()

    (block,) = await world.guard.blocks()
    assert block.evidence == Evidence(calls=100, successes=0)


async def test_100_parallel_successes_are_100_successes(world: World) -> None:
    await world.call(100)
    await asyncio.gather(*(world.guard.succeeded(phone, "shop") for phone in phones(PUMPED, 100)))
    await world.call(901)
    await world.pass_time(MATURE)
    await world.refusal()

    (block,) = await world.guard.blocks()
    assert block.evidence == Evidence(calls=1001, successes=100)


async def test_a_refused_call_is_not_counted(world: World) -> None:
    await world.block()
    before = await world.redis.hgetall("pv:{guard}:n:client:shop")

    for _ in range(30):
        await world.refusal()

    assert await world.redis.exists(f"pv:{{guard}}:n:range:{PUMPED}") == 0
    assert await world.redis.hgetall("pv:{guard}:n:client:shop") == before


async def test_a_refunded_call_is_not_counted(world: World) -> None:
    await world.call(20)
    await world.guard.refund(Phone(f"{PUMPED}000"), "shop")
    await world.pass_time(MATURE)

    assert await world.refusal() is None
    assert await world.guard.suspects() == []


async def test_a_call_placed_a_minute_ago_can_be_refunded_though_others_follow(world: World) -> None:
    """The latest bucket may hold no call any more: then the one before it gives back."""
    await world.call(20)
    await world.pass_time(2 * MINUTE)
    await world.call(1)
    for phone in phones(PUMPED, 2):
        await world.guard.refund(phone, "shop")
    await world.pass_time(MATURE)

    assert await world.refusal() is None


async def test_refunding_more_than_there_was_never_goes_below_zero(world: World) -> None:
    await world.call(3)
    await asyncio.gather(*(world.guard.refund(phone, "shop") for phone in phones(PUMPED, 50)))
    await world.call(20)
    await world.pass_time(MATURE)

    assert await world.refusal() is not None


async def test_refunding_what_is_not_known_is_nothing(world: World) -> None:
    await world.guard.refund(Phone(f"{PUMPED}000"), "shop")

    assert await world.redis.keys() == []


async def test_a_client_that_converts_badly_is_reported_once_and_not_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        await world.call(1, f"+7916{number:04}", "shop")
    await world.pass_time(MATURE)

    await asyncio.gather(*(world.guard.admit(phone, "shop") for phone in phones(OTHER, 50)))

    (event,) = events(caplog, "guard.client_reported")
    assert vars(event) | {"client": "shop", "calls": 20, "conversion": 0.0} == vars(event)
    (suspect,) = await world.guard.suspects()
    assert (suspect.client, suspect.evidence) == ("shop", Evidence(calls=20, successes=0))
    assert suspect.until - suspect.since == HOUR
    assert await world.guard.blocks() == []


async def test_a_client_all_of_whose_calls_are_refused_is_reported_still(world: World) -> None:
    await world.call(20, PUMPED, "other")
    await world.call(20, PUMPED, "shop")
    await world.pass_time(MATURE)

    await world.refusal(PUMPED, "other")
    await world.refusal(PUMPED, "shop")

    assert [suspect.client for suspect in await world.guard.suspects()] == ["other", "shop"]


async def test_blocks_are_listed_the_oldest_first_until_they_end(world: World) -> None:
    await world.call(25, OTHER, answered=1)
    await world.pass_time(MATURE)
    assert await world.refusal(OTHER) is not None
    await world.block()

    first, second = await world.guard.blocks()

    assert (first.range, first.level, first.evidence) == (OTHER, 1, Evidence(calls=25, successes=1))
    assert (first.evidence.conversion, first.until - first.since) == (0.04, HOUR)
    assert second.range == PUMPED

    await world.pass_time(HOUR - MINUTE)
    assert [block.range for block in await world.guard.blocks()] == [PUMPED]


async def test_the_list_forgets_what_is_forgotten(world: World) -> None:
    await world.block()
    await world.pass_time(HOUR + RULES.memory - MINUTE)
    await world.call(20, OTHER)
    await world.pass_time(MATURE)
    assert await world.refusal(OTHER) is not None

    assert [block.range for block in await world.guard.blocks()] == [OTHER]
    assert sorted(await world.redis.hkeys("pv:{guard}:list")) == [b"client:shop", b"range:" + OTHER.encode()]


async def test_a_lifted_range_is_called_again_and_its_next_block_is_a_first_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.block()

    assert await world.guard.lift(PUMPED) is True

    assert await world.guard.blocks() == []
    assert len(events(caplog, "guard.lifted")) == 1
    assert await world.refusal() is None
    assert await world.block() == 3600


async def test_of_parallel_lifts_one_lifts(world: World) -> None:
    await world.block()

    assert sum(await asyncio.gather(*(world.guard.lift(PUMPED) for _ in range(20)))) == 1


@pytest.mark.parametrize("number_range", [OTHER, "", "+7900123", "shop", "*"])
async def test_what_is_not_blocked_cannot_be_lifted(world: World, number_range: str) -> None:
    await world.block()

    assert await world.guard.lift(number_range) is False
    assert len(await world.guard.blocks()) == 1


async def test_an_ended_block_cannot_be_lifted_and_its_level_stays(world: World) -> None:
    await world.block()
    await world.pass_time(HOUR)

    assert await world.guard.lift(PUMPED) is False
    assert await world.block() == 2 * 3600


async def test_every_key_begins_with_the_prefix_and_has_a_ttl(world: World) -> None:
    await world.block()
    await world.call(5, OTHER, answered=3)
    await world.guard.refund(Phone(f"{OTHER}000"), "shop")

    keys = await world.redis.keys()

    assert len(keys) == 5
    for key in keys:
        assert str(key).startswith("b'pv:{guard}:")
        assert 0 < await world.redis.pttl(key) <= (HOUR + RULES.memory).total_seconds() * 1000


async def test_a_busy_hour_costs_little_memory(world: World) -> None:
    for _ in range(60):
        await world.call(1, answered=1)
        await world.pass_time(MINUTE)

    key = f"pv:{{guard}}:n:range:{PUMPED}"
    assert await world.redis.hlen(key) == 1 + 3 * 60
    memory = await world.redis.memory_usage(key)
    assert memory is not None
    assert memory < 10_000


@pytest.mark.parametrize("prefix", ["+7900", "+7900123", PUMPED])
async def test_an_allowed_prefix_is_neither_blocked_nor_counted(redis: Redis, make_guard: Guard, prefix: str) -> None:
    world = World(redis, make_guard(replace(RULES, allowed_prefixes=("+7999", prefix))))

    await world.call(100, answered=1)
    await world.guard.refund(Phone(f"{PUMPED}000"), "shop")

    assert await redis.keys() == []


async def test_an_allowed_phone_does_not_allow_its_neighbours(redis: Redis, make_guard: Guard) -> None:
    world = World(redis, make_guard(replace(RULES, allowed_prefixes=(f"{PUMPED}000",))))
    await world.call(21)
    await world.pass_time(MATURE)

    assert await world.refusal() is not None
    await world.guard.admit(Phone(f"{PUMPED}000"), "shop")


async def test_allowing_a_range_that_is_blocked_opens_it_at_once(world: World, make_guard: Guard) -> None:
    await world.block()

    await make_guard(replace(RULES, allowed_prefixes=(PUMPED,))).admit(Phone(f"{PUMPED}000"), "shop")


async def test_switched_off_it_sends_redis_no_command(world: World, make_guard: Guard) -> None:
    await world.block()
    before = await world.redis.info("stats")
    off = make_guard(replace(RULES, enabled=False))

    for phone in phones(PUMPED, 30):
        await off.admit(phone, "shop")
    await off.refund(Phone(f"{PUMPED}000"), "shop")
    await off.succeeded(Phone(f"{PUMPED}000"), "shop")
    assert (await off.blocks(), await off.suspects(), await off.lift(PUMPED)) == ([], [], False)

    after = await world.redis.info("stats")
    assert after["total_commands_processed"] - before["total_commands_processed"] == 1  # the first INFO itself


async def test_without_redis_every_use_says_so() -> None:
    async with Redis.from_url("redis://127.0.0.1:1", socket_connect_timeout=0.2) as nowhere:
        guard = RedisFraudGuard(ScriptRunner(nowhere, timeout=0.5), RULES)
        phone = Phone(f"{PUMPED}000")
        for use in (
            guard.admit(phone, "shop"),
            guard.refund(phone, "shop"),
            guard.succeeded(phone, "shop"),
            guard.blocks(),
            guard.suspects(),
            guard.lift(PUMPED),
        ):
            with pytest.raises(StoreUnavailable):
                await use
