"""The fraud guard on a real Redis: which number ranges it blocks, for how long, and which it does not."""

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
from app.verification.fraud_guard import range_of
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
class GuardHarness:
    """A guard, and methods that place calls and let time pass for it."""

    redis: Redis
    guard: RedisFraudGuard

    async def call(self, count: int, number_range: str = PUMPED, client: str = "shop", *, answered: int = 0) -> None:
        """Place ``count`` calls, of which the first ``answered`` are verified."""
        called = phones(number_range, count)
        for phone in called:
            await self.guard.admit(phone, client)
        await self.succeed(*called[:answered], client=client)

    async def succeed(self, *called: Phone, client: str = "shop") -> None:
        """Verify the calls to some phones."""
        for phone in called:
            self.guard.succeeded(phone, client)
        await self.guard.flush()

    async def pass_time(self, duration: timedelta) -> None:
        await age(self.redis, duration)

    async def refusal(self, number_range: str = PUMPED, client: str = "shop") -> RateLimited | None:
        """Try one more call; return its refusal, if any."""
        try:
            await self.guard.admit(Phone(f"{number_range}999"), client)
        except RateLimited as refusal:
            return refusal
        return None

    async def block(self) -> int:
        """Block the pumped range, and return ``retry_after`` in seconds."""
        await self.call(20)
        await self.pass_time(MATURE)
        refusal = await self.refusal()
        assert refusal is not None
        return refusal.retry_after


@pytest.fixture
def make_guard(redis: Redis) -> Guard:
    return lambda rules=RULES: RedisFraudGuard(ScriptRunner(redis, timeout=1), rules)


@pytest.fixture
def harness(redis: Redis, make_guard: Guard) -> GuardHarness:
    return GuardHarness(redis, make_guard())


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.message == name]


def test_a_range_has_a_thousand_numbers() -> None:
    assert range_of(Phone("+79001234567")) == "+79001234"


async def test_a_range_without_successful_checks_is_blocked(harness: GuardHarness) -> None:
    await harness.call(20)
    await harness.pass_time(MATURE)

    refusal = await harness.refusal()

    assert refusal is not None
    assert (refusal.limit, refusal.retry_after) == ("fraud_guard", 3600)
    assert await harness.refusal(OTHER) is None


async def test_a_preview_blocks_like_a_call_but_is_not_counted(harness: GuardHarness) -> None:
    """A start that another limit refuses is only previewed, and must not delay or change the evidence."""
    await harness.call(20)
    for _ in range(50):
        await harness.guard.require_open(Phone(f"{PUMPED}999"), "shop")
    await harness.pass_time(MATURE)

    with pytest.raises(RateLimited, match="fraud_guard"):
        await harness.guard.require_open(Phone(f"{PUMPED}999"), "shop")

    (block,) = await harness.guard.blocks()
    assert (block.range, block.calls) == (PUMPED, 20)


async def test_after_a_block_ends_the_range_has_no_evidence(harness: GuardHarness) -> None:
    await harness.block()
    await harness.pass_time(HOUR - MINUTE)
    assert await harness.refusal() is not None

    await harness.pass_time(MINUTE)

    await harness.call(19)
    await harness.pass_time(MATURE)
    assert await harness.refusal() is None


@pytest.mark.parametrize(
    ("calls", "answered", "blocked"),
    [(19, 0, False), (20, 0, True), (20, 1, True), (20, 2, False), (30, 3, False), (31, 3, True), (20, 20, False)],
)
async def test_a_block_needs_enough_calls_and_a_conversion_below_the_threshold(
    harness: GuardHarness, calls: int, answered: int, *, blocked: bool
) -> None:
    await harness.call(calls, answered=answered)
    await harness.pass_time(MATURE)

    assert (await harness.refusal() is not None) == blocked


async def test_calls_younger_than_the_maturity_are_not_evidence(harness: GuardHarness) -> None:
    """After an advertisement, the first 100 people may not have typed their codes yet."""
    await harness.call(100)
    await harness.pass_time(RULES.maturity - timedelta(seconds=10))
    assert await harness.refusal() is None

    await harness.succeed(*phones(PUMPED, 50))
    await harness.pass_time(MATURE)

    assert await harness.refusal() is None
    assert await harness.guard.suspects() == []


async def test_only_calls_of_the_last_hour_are_evidence(harness: GuardHarness) -> None:
    await harness.call(15)
    await harness.pass_time(HOUR - MINUTE)
    await harness.call(15)
    await harness.pass_time(MATURE)

    assert await harness.refusal() is None
    (key,) = [key async for key in harness.redis.scan_iter("pv2{guard}:n:range:*")]
    assert str(await harness.redis.hget(key, "earlier")).count(":15:") == 1, "the first bucket is dropped"


async def test_successes_expire_together_with_their_calls(harness: GuardHarness) -> None:
    await harness.call(20, answered=20)
    await harness.pass_time(HOUR - MATURE)
    await harness.call(20)
    await harness.pass_time(MATURE)

    assert await harness.refusal() is not None


async def test_a_success_without_a_counted_call_is_ignored(harness: GuardHarness) -> None:
    await harness.succeed(Phone(f"{PUMPED}000"))

    assert await harness.redis.keys() == []


async def test_repeated_blocks_double_up_to_the_maximum(harness: GuardHarness) -> None:
    hours = []
    for _ in range(6):
        hours.append(await harness.block() // 3600)
        await harness.pass_time(timedelta(hours=hours[-1]))

    assert hours == [1, 2, 4, 8, 12, 12]


async def test_the_level_is_reset_a_day_after_the_last_block(harness: GuardHarness) -> None:
    assert await harness.block() == 3600
    await harness.pass_time(HOUR + RULES.memory - HOUR)
    assert await harness.block() == 2 * 3600

    await harness.pass_time(2 * HOUR + RULES.memory)
    assert await harness.block() == 3600


async def test_of_100_concurrent_calls_at_the_threshold_all_are_refused_and_the_block_logged_once(
    harness: GuardHarness, caplog: pytest.LogCaptureFixture
) -> None:
    await harness.call(20)
    await harness.pass_time(MATURE)

    answers = await asyncio.gather(
        *(harness.guard.admit(phone, "shop") for phone in phones(PUMPED, 100)), return_exceptions=True
    )

    assert all(isinstance(answer, RateLimited) for answer in answers)
    (event,) = events(caplog, "guard.blocked")
    assert vars(event) | {"range": PUMPED, "level": 1, "calls": 20, "conversion": 0.0} == vars(event)
    assert f"{PUMPED}0" not in str(vars(event)), "only the range is logged, not a phone number"


async def test_of_100_concurrent_calls_below_the_threshold_all_are_admitted(harness: GuardHarness) -> None:
    await harness.call(19)
    await harness.pass_time(MATURE)

    await asyncio.gather(*(harness.guard.admit(phone, "shop") for phone in phones(PUMPED, 100)))

    assert await harness.guard.blocks() == []


async def test_100_concurrent_calls_are_all_counted(harness: GuardHarness) -> None:
    await asyncio.gather(*(harness.guard.admit(phone, "shop") for phone in phones(PUMPED, 100)))
    await harness.pass_time(MATURE)
    await harness.refusal()

    (block,) = await harness.guard.blocks()
    assert (block.calls, block.successes) == (100, 0)


async def test_100_parallel_successes_are_100_successes(harness: GuardHarness) -> None:
    await harness.call(100)
    await asyncio.gather(*(harness.succeed(phone) for phone in phones(PUMPED, 100)))
    await harness.call(901)
    await harness.pass_time(MATURE)
    await harness.refusal()

    (block,) = await harness.guard.blocks()
    assert (block.calls, block.successes) == (1001, 100)


async def test_a_refused_call_is_not_counted(harness: GuardHarness) -> None:
    await harness.block()
    before = await harness.redis.hgetall("pv2{guard}:n:client:shop")

    for _ in range(30):
        await harness.refusal()

    assert await harness.redis.exists(f"pv2{{guard}}:n:range:{PUMPED}") == 0
    assert await harness.redis.hgetall("pv2{guard}:n:client:shop") == before


async def test_a_refunded_call_is_not_counted(harness: GuardHarness) -> None:
    await harness.call(20)
    await harness.guard.refund(Phone(f"{PUMPED}000"), "shop")
    await harness.pass_time(MATURE)

    assert await harness.refusal() is None
    assert await harness.guard.suspects() == []


async def test_a_call_can_be_refunded_after_later_calls(harness: GuardHarness) -> None:
    """If the latest bucket has no call left, the refund is taken from the one before it."""
    await harness.call(20)
    await harness.pass_time(2 * MINUTE)
    await harness.call(1)
    for phone in phones(PUMPED, 2):
        await harness.guard.refund(phone, "shop")
    await harness.pass_time(MATURE)

    assert await harness.refusal() is None


async def test_refunds_never_make_a_count_negative(harness: GuardHarness) -> None:
    await harness.call(3)
    await asyncio.gather(*(harness.guard.refund(phone, "shop") for phone in phones(PUMPED, 50)))
    await harness.call(20)
    await harness.pass_time(MATURE)

    assert await harness.refusal() is not None


async def test_refunding_an_unknown_call_changes_nothing(harness: GuardHarness) -> None:
    await harness.guard.refund(Phone(f"{PUMPED}000"), "shop")

    assert await harness.redis.keys() == []


async def test_a_client_with_a_low_conversion_is_reported_once_and_not_refused(
    harness: GuardHarness, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        await harness.call(1, f"+7916{number:04}", "shop")
    await harness.pass_time(MATURE)

    await asyncio.gather(*(harness.guard.admit(phone, "shop") for phone in phones(OTHER, 50)))

    (event,) = events(caplog, "guard.client_reported")
    assert vars(event) | {"client": "shop", "calls": 20, "conversion": 0.0} == vars(event)
    (suspect,) = await harness.guard.suspects()
    assert (suspect.client, suspect.calls, suspect.successes) == ("shop", 20, 0)
    assert suspect.until - suspect.since == HOUR
    assert await harness.guard.blocks() == []


async def test_a_client_whose_calls_are_all_refused_is_still_reported(harness: GuardHarness) -> None:
    await harness.call(20, PUMPED, "other")
    await harness.call(20, PUMPED, "shop")
    await harness.pass_time(MATURE)

    await harness.refusal(PUMPED, "other")
    await harness.refusal(PUMPED, "shop")

    assert [suspect.client for suspect in await harness.guard.suspects()] == ["other", "shop"]


async def test_blocks_are_listed_oldest_first_until_they_end(harness: GuardHarness) -> None:
    await harness.call(25, OTHER, answered=1)
    await harness.pass_time(MATURE)
    assert await harness.refusal(OTHER) is not None
    await harness.block()

    first, second = await harness.guard.blocks()

    assert (first.range, first.level, first.calls, first.successes) == (OTHER, 1, 25, 1)
    assert (first.successes / first.calls, first.until - first.since) == (0.04, HOUR)
    assert second.range == PUMPED

    await harness.pass_time(HOUR - MINUTE)
    assert [block.range for block in await harness.guard.blocks()] == [PUMPED]


async def test_expired_blocks_are_removed_from_the_list(harness: GuardHarness) -> None:
    await harness.block()
    await harness.pass_time(HOUR + RULES.memory - MINUTE)
    await harness.call(20, OTHER)
    await harness.pass_time(MATURE)
    assert await harness.refusal(OTHER) is not None

    assert [block.range for block in await harness.guard.blocks()] == [OTHER]
    assert sorted(await harness.redis.hkeys("pv2{guard}:blocks")) == [b"client:shop", b"range:" + OTHER.encode()]


async def test_a_lifted_range_can_be_called_and_its_level_is_reset(
    harness: GuardHarness, caplog: pytest.LogCaptureFixture
) -> None:
    await harness.block()

    assert await harness.guard.lift(PUMPED) is True

    assert await harness.guard.blocks() == []
    assert len(events(caplog, "guard.lifted")) == 1
    assert await harness.refusal() is None
    assert await harness.block() == 3600


async def test_of_concurrent_lifts_exactly_one_succeeds(harness: GuardHarness) -> None:
    await harness.block()

    assert sum(await asyncio.gather(*(harness.guard.lift(PUMPED) for _ in range(20)))) == 1


@pytest.mark.parametrize("number_range", [OTHER, "", "+7900123", "shop", "*"])
async def test_a_range_that_is_not_blocked_cannot_be_lifted(harness: GuardHarness, number_range: str) -> None:
    await harness.block()

    assert await harness.guard.lift(number_range) is False
    assert len(await harness.guard.blocks()) == 1


async def test_an_ended_block_cannot_be_lifted_and_keeps_its_level(harness: GuardHarness) -> None:
    await harness.block()
    await harness.pass_time(HOUR)

    assert await harness.guard.lift(PUMPED) is False
    assert await harness.block() == 2 * 3600


async def test_every_key_begins_with_the_prefix_and_has_a_ttl(harness: GuardHarness) -> None:
    await harness.block()
    await harness.call(5, OTHER, answered=3)
    await harness.guard.refund(Phone(f"{OTHER}000"), "shop")

    keys = await harness.redis.keys()

    assert len(keys) == 3
    for key in keys:
        assert str(key).startswith("b'pv2{guard}:")
        assert 0 < await harness.redis.pttl(key) <= (HOUR + RULES.memory).total_seconds() * 1000


async def test_the_counters_of_a_busy_hour_are_small(harness: GuardHarness) -> None:
    for _ in range(60):
        await harness.call(1, answered=1)
        await harness.pass_time(MINUTE)

    key = f"pv2{{guard}}:n:range:{PUMPED}"
    assert len(str(await harness.redis.hget(key, "earlier")).split()) == 60 - 1, "beside the latest bucket"
    memory = await harness.redis.memory_usage(key)
    assert memory is not None
    assert memory < 10_000


@pytest.mark.parametrize("prefix", ["+7900", "+7900123", PUMPED])
async def test_an_allowed_prefix_is_neither_blocked_nor_counted(redis: Redis, make_guard: Guard, prefix: str) -> None:
    harness = GuardHarness(redis, make_guard(replace(RULES, allowed_prefixes=("+7999", prefix))))

    await harness.call(100, answered=1)
    await harness.guard.refund(Phone(f"{PUMPED}000"), "shop")

    assert await redis.keys() == []


async def test_an_allowed_phone_does_not_allow_other_phones_of_its_range(redis: Redis, make_guard: Guard) -> None:
    harness = GuardHarness(redis, make_guard(replace(RULES, allowed_prefixes=(f"{PUMPED}000",))))
    await harness.call(21)
    await harness.pass_time(MATURE)

    assert await harness.refusal() is not None
    await harness.guard.admit(Phone(f"{PUMPED}000"), "shop")


async def test_allowing_a_blocked_range_admits_its_calls_at_once(harness: GuardHarness, make_guard: Guard) -> None:
    await harness.block()

    await make_guard(replace(RULES, allowed_prefixes=(PUMPED,))).admit(Phone(f"{PUMPED}000"), "shop")


async def test_successes_are_written_together(harness: GuardHarness) -> None:
    await harness.call(20)
    before = await harness.redis.info("stats")

    await harness.succeed(*phones(PUMPED, 20))
    await harness.guard.flush()

    after = await harness.redis.info("stats")
    assert after["total_reads_processed"] - before["total_reads_processed"] == 2  # one, and the INFO itself


async def test_a_disabled_guard_sends_no_command_to_redis(harness: GuardHarness, make_guard: Guard) -> None:
    await harness.block()
    before = await harness.redis.info("stats")
    off = make_guard(replace(RULES, enabled=False))

    for phone in phones(PUMPED, 30):
        await off.admit(phone, "shop")
    await off.refund(Phone(f"{PUMPED}000"), "shop")
    off.succeeded(Phone(f"{PUMPED}000"), "shop")
    await off.flush()
    assert (await off.blocks(), await off.suspects(), await off.lift(PUMPED)) == ([], [], False)

    after = await harness.redis.info("stats")
    assert after["total_commands_processed"] - before["total_commands_processed"] == 1  # the first INFO itself


async def test_without_redis_every_method_raises_store_unavailable() -> None:
    async with Redis.from_url("redis://127.0.0.1:1", socket_connect_timeout=0.2) as nowhere:
        guard = RedisFraudGuard(ScriptRunner(nowhere, timeout=0.5), RULES)
        phone = Phone(f"{PUMPED}000")
        guard.succeeded(phone, "shop")
        for use in (
            guard.admit(phone, "shop"),
            guard.refund(phone, "shop"),
            guard.flush(),
            guard.blocks(),
            guard.suspects(),
            guard.lift(PUMPED),
        ):
            with pytest.raises(StoreUnavailable):
                await use
