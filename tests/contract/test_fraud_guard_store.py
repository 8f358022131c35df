"""The fraud guard on a real Redis: which number ranges it blocks, for how long, and which it does not."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from unittest.mock import AsyncMock

import pytest
from redis.asyncio import Redis

from app.store.fraud_guard import RedisFraudGuard
from app.store.layout import name_block, name_limit
from app.store.limits import RedisRateLimiter
from app.store.scripts import ScriptRunner
from app.verification.errors import RateLimited, StoreUnavailable
from app.verification.fraud_guard import GuardRules, range_of
from app.verification.phone import Phone
from app.verification.policy import Allowance, Limit, Policy
from tests.ageing import age
from tests.keys import stored
from tests.limit_keys import block_subject, read_limit
from tests.limiters import KEY
from tests.policies import make_guard_rules, make_policy

MakeHarness = Callable[..., "GuardHarness"]

RULES = make_guard_rules()
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
MATURE = RULES.maturity + MINUTE  # a call is judged by the minute in which it was placed
PUMPED, OTHER = "+79001234", "+79161234"

# The limits never refuse here.
POLICY = make_policy(
    calls_per_range=Limit("calls_per_range", 10**6, HOUR),
    calls_per_client=(Limit("calls_per_client", 10**6, MINUTE),),
    calls_per_day=Limit("calls_per_day", 10**6, 24 * HOUR),
)


def phones(number_range: str, count: int) -> list[Phone]:
    return [Phone(f"{number_range}{number:03}") for number in range(count)]


def range_key(number_range: str) -> str:
    return stored(name_limit(KEY, "calls_per_range", number_range))


async def keys_of(redis: Redis) -> set[str]:
    found: list[bytes] = await redis.keys()  # type: ignore[assignment] # this client decodes nothing
    return {key.decode() for key in found}


def client_key(client: str) -> str:
    return stored(name_limit(KEY, "calls_per_client", client))


@dataclass
class GuardHarness:
    """A guard and its limiter, and methods that place calls and let time pass for them."""

    redis: Redis
    limiter: RedisRateLimiter
    guard: RedisFraudGuard
    policy: Policy = POLICY
    tokens: list[str] = field(default_factory=list)  # of the calls that were admitted and not refunded
    numbers: Iterator[int] = field(default_factory=count)

    async def admit(self, phone: Phone, client: str) -> None:
        """Count a call."""
        token = f"{next(self.numbers):012x}"
        reservation = await self.limiter.acquire(token, self._allowances(phone, client))
        self.tokens.append(reservation.token)

    async def require_open(self, phone: Phone, client: str) -> None:
        """Ask whether a call would be admitted."""
        await self.limiter.require_room(self._allowances(phone, client))

    async def refund(self, phone: Phone, client: str) -> None:
        """Refund the last admitted call, or one that nobody knows."""
        allowances = self._allowances(phone, client)
        moments = [str(int(time.time() * 1000))] * len(self.limiter._groups(allowances))
        token = self.tokens.pop() if self.tokens else f"ffffffffffff@{','.join(moments)}"
        await self.limiter.refund(token, allowances)

    def _allowances(self, phone: Phone, client: str) -> Sequence[Allowance]:
        return self.policy.for_calls(client=client, phone=phone, address=None)

    async def call(self, count: int, number_range: str = PUMPED, client: str = "shop", *, answered: int = 0) -> None:
        """Place ``count`` calls, of which the first ``answered`` are verified."""
        called = phones(number_range, count)
        for phone in called:
            await self.admit(phone, client)
        await self.succeed(*called[:answered], client=client)

    async def succeed(self, *called: Phone, client: str = "shop") -> None:
        """Verify the calls to some phones."""
        for phone in called:
            self.guard.succeeded(phone, client)
        await self.guard.flush()

    async def pass_time(self, duration: timedelta) -> None:
        await age(self.redis, duration)
        passed = duration // timedelta(milliseconds=1)
        self.tokens = [re.sub(r"\d{13}", lambda found: str(int(found[0]) - passed), token) for token in self.tokens]

    async def refusal(self, number_range: str = PUMPED, client: str = "shop") -> RateLimited | None:
        """Try one more call; return its refusal, if any."""
        try:
            await self.admit(Phone(f"{number_range}999"), client)
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
def make_harness(redis: Redis) -> MakeHarness:
    def make(rules: GuardRules = RULES) -> GuardHarness:
        runner = ScriptRunner(redis, timeout=5)
        guard = RedisFraudGuard(runner, rules, key=KEY)
        policy = replace(POLICY, allowed_prefixes=rules.allowed_prefixes)  # of one setting
        return GuardHarness(redis, RedisRateLimiter(runner, key=KEY, guard=guard), guard, policy)

    return make


@pytest.fixture
def harness(make_harness: MakeHarness) -> GuardHarness:
    return make_harness()


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
        await harness.require_open(Phone(f"{PUMPED}999"), "shop")
    await harness.pass_time(MATURE)

    with pytest.raises(RateLimited, match="fraud_guard"):
        await harness.require_open(Phone(f"{PUMPED}999"), "shop")

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
    # The refused call judged the range, the next one saves what was dropped.
    await harness.call(1)
    counted = (await read_limit(harness.redis, range_key(PUMPED)))["calls"]
    assert [calls for _, calls, _ in counted] == [15, 2], "the first bucket is dropped"


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
        *(harness.admit(phone, "shop") for phone in phones(PUMPED, 100)), return_exceptions=True
    )

    assert all(isinstance(answer, RateLimited) for answer in answers)
    (event,) = events(caplog, "guard.blocked")
    assert vars(event) | {"range": PUMPED, "level": 1, "calls": 20, "conversion": 0.0} == vars(event)
    assert f"{PUMPED}0" not in str(vars(event)), "only the range is logged, not a phone number"


async def test_of_100_concurrent_calls_below_the_threshold_all_are_admitted(harness: GuardHarness) -> None:
    await harness.call(19)
    await harness.pass_time(MATURE)

    await asyncio.gather(*(harness.admit(phone, "shop") for phone in phones(PUMPED, 100)))

    assert await harness.guard.blocks() == []


async def test_100_concurrent_calls_are_all_counted(harness: GuardHarness) -> None:
    await asyncio.gather(*(harness.admit(phone, "shop") for phone in phones(PUMPED, 100)))
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
    before = await read_limit(harness.redis, client_key("shop"))

    for _ in range(30):
        await harness.refusal()

    assert (await read_limit(harness.redis, range_key(PUMPED)))["calls"] == {}
    assert await read_limit(harness.redis, client_key("shop")) == before


async def test_a_refunded_call_is_not_counted(harness: GuardHarness) -> None:
    await harness.call(20)
    await harness.refund(Phone(f"{PUMPED}000"), "shop")
    await harness.pass_time(MATURE)

    assert await harness.refusal() is None
    assert await harness.guard.suspects() == []


async def test_a_call_can_be_refunded_after_later_calls(harness: GuardHarness) -> None:
    """If the latest bucket has no call left, the refund is taken from the one before it."""
    await harness.call(20)
    await harness.pass_time(2 * MINUTE)
    await harness.call(1)
    for phone in phones(PUMPED, 2):
        await harness.refund(phone, "shop")
    await harness.pass_time(MATURE)

    assert await harness.refusal() is None


async def test_refunds_never_make_a_count_negative(harness: GuardHarness) -> None:
    await harness.call(3)
    await asyncio.gather(*(harness.refund(phone, "shop") for phone in phones(PUMPED, 50)))
    await harness.call(20)
    await harness.pass_time(MATURE)

    assert await harness.refusal() is not None


async def test_refunding_an_unknown_call_changes_nothing(harness: GuardHarness) -> None:
    await harness.refund(Phone(f"{PUMPED}000"), "shop")

    assert await harness.redis.keys() == []


async def test_a_client_with_a_low_conversion_is_reported_once_and_not_refused(
    harness: GuardHarness, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        await harness.call(1, f"+7916{number:04}", "shop")
    await harness.pass_time(MATURE)

    await asyncio.gather(*(harness.admit(phone, "shop") for phone in phones(OTHER, 50)))

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
    assert await harness.redis.zrange("pv3{guard}:ranges", 0, -1) == [OTHER.encode()]


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
    await harness.refund(Phone(f"{OTHER}000"), "shop")

    keys = await keys_of(harness.redis)

    names = {
        range_key(PUMPED),
        range_key(OTHER),
        client_key("shop"),
        stored(name_limit(KEY, "calls_per_day", "everybody")),
    }
    blocks = {name_block(range_key(PUMPED)), name_block(client_key("shop"))}
    assert keys == names | blocks | {"pv3{guard}:ranges", "pv3{guard}:clients"}
    for key in keys:
        assert key.startswith("pv3{")
        assert 0 < await harness.redis.pttl(key) <= (HOUR + RULES.memory).total_seconds() * 1000


async def test_the_counters_of_a_busy_hour_are_small(harness: GuardHarness) -> None:
    for _ in range(60):
        await harness.call(1, answered=1)
        await harness.pass_time(MINUTE)

    assert len((await read_limit(harness.redis, range_key(PUMPED)))["calls"]) == 60
    memory = await harness.redis.memory_usage(range_key(PUMPED))
    assert memory is not None
    assert memory < 2_500


@pytest.mark.parametrize("prefix", ["+7900", "+7900123", PUMPED])
async def test_an_allowed_prefix_is_neither_blocked_nor_counted(
    redis: Redis, make_harness: MakeHarness, prefix: str
) -> None:
    harness = make_harness(replace(RULES, allowed_prefixes=("+7999", prefix)))

    await harness.call(100, answered=1)
    await harness.refund(Phone(f"{PUMPED}000"), "shop")

    keys = await keys_of(redis)
    assert keys == {client_key("shop"), stored(name_limit(KEY, "calls_per_day", "everybody"))}
    assert [(await read_limit(redis, key))["calls"] for key in keys] == [{}, {}]


async def test_an_allowed_phone_does_not_allow_other_phones_of_its_range(make_harness: MakeHarness) -> None:
    harness = make_harness(replace(RULES, allowed_prefixes=(f"{PUMPED}000",)))
    await harness.call(21)
    await harness.pass_time(MATURE)

    assert await harness.refusal() is not None
    await harness.admit(Phone(f"{PUMPED}000"), "shop")


async def test_allowing_a_blocked_range_admits_its_calls_at_once(
    harness: GuardHarness, make_harness: MakeHarness
) -> None:
    await harness.block()

    await make_harness(replace(RULES, allowed_prefixes=(PUMPED,))).admit(Phone(f"{PUMPED}000"), "shop")


@pytest.mark.standalone  # counts the round trips of one server
async def test_successes_are_written_together(harness: GuardHarness) -> None:
    await harness.call(20, answered=1)  # loads the script
    before = await harness.redis.info("stats")

    await harness.succeed(*phones(PUMPED, 20))
    await harness.guard.flush()

    after = await harness.redis.info("stats")
    assert after["total_reads_processed"] - before["total_reads_processed"] == 2  # one, and the INFO itself


async def test_a_disabled_guard_counts_and_blocks_nothing(harness: GuardHarness, make_harness: MakeHarness) -> None:
    await harness.block()
    await harness.call(3, OTHER)
    before = await read_limit(harness.redis, range_key(PUMPED)), await read_limit(harness.redis, client_key("shop"))
    off = make_harness(replace(RULES, enabled=False))

    for number_range in (PUMPED, OTHER):
        await off.call(30, number_range)
        await off.refund(Phone(f"{number_range}000"), "shop")

    blocked, client = (
        await read_limit(harness.redis, range_key(PUMPED)),
        await read_limit(harness.redis, client_key("shop")),
    )
    assert (blocked["calls"], before[0]["calls"]) == ({}, {})
    assert client["calls"] == before[1]["calls"]


@pytest.mark.standalone  # counts the commands of one server
async def test_a_disabled_guard_sends_no_command_to_redis(harness: GuardHarness, make_harness: MakeHarness) -> None:
    await harness.block()
    before = await harness.redis.info("stats")
    off = make_harness(replace(RULES, enabled=False)).guard

    off.succeeded(Phone(f"{PUMPED}000"), "shop")
    await off.flush()
    assert (await off.blocks(), await off.suspects(), await off.lift(PUMPED)) == ([], [], False)
    assert await off.gauges() == {"fraud_blocks": 0}

    after = await harness.redis.info("stats")
    assert after["total_commands_processed"] - before["total_commands_processed"] == 1  # the first INFO itself


async def test_without_redis_every_method_raises_store_unavailable() -> None:
    async with Redis.from_url("redis://127.0.0.1:1", socket_connect_timeout=0.2) as nowhere:
        runner, phone = ScriptRunner(nowhere, timeout=0.5), Phone(f"{PUMPED}000")
        guard = RedisFraudGuard(runner, RULES, key=KEY)
        harness = GuardHarness(nowhere, RedisRateLimiter(runner, key=KEY, guard=guard), guard)
        guard.succeeded(phone, "shop")
        for use in (
            harness.admit(phone, "shop"),
            harness.refund(phone, "shop"),
            harness.require_open(phone, "shop"),
            guard.flush(),
            guard.blocks(),
            guard.suspects(),
            guard.lift(PUMPED),
        ):
            with pytest.raises(StoreUnavailable):
                await use


async def test_a_block_whose_process_died_before_it_was_listed_is_listed_by_the_next_that_meets_it(
    harness: GuardHarness, make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.call(20)
    await harness.pass_time(MATURE)
    with monkeypatch.context() as patched:
        patched.setattr(RedisFraudGuard, "publish", AsyncMock(side_effect=asyncio.CancelledError))
        with pytest.raises(asyncio.CancelledError):
            await harness.require_open(Phone(f"{PUMPED}999"), "shop")
    assert await harness.guard.blocks() == []

    other = make_harness()
    assert await other.refusal() is not None
    assert [block.range for block in await harness.guard.blocks()] == [PUMPED]


@pytest.mark.standalone  # counts the commands of one server
async def test_a_block_is_added_to_the_index_once_by_each_process(
    harness: GuardHarness, make_harness: MakeHarness
) -> None:
    await harness.block()
    other = make_harness()
    await other.refusal()
    before = await harness.redis.info("commandstats")

    for _ in range(10):
        assert await harness.refusal() is not None
        assert await other.refusal() is not None

    after = await harness.redis.info("commandstats")
    assert after["cmdstat_zadd"]["calls"] == before["cmdstat_zadd"]["calls"]


async def test_what_the_index_still_has_of_a_lifted_block_is_not_listed(harness: GuardHarness) -> None:
    """The process died between both, or another one listed the block late."""
    await harness.block()
    assert await harness.guard.lift(PUMPED)

    await harness.redis.zadd("pv3{guard}:ranges", {PUMPED: time.time() * 1000 + 3_600_000})

    assert await harness.guard.blocks() == []


async def test_blocks_are_listed_in_small_steps(harness: GuardHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.store.fraud_guard._LISTED_AT_ONCE", 2)
    ranges = [f"+7900{number:04}" for number in range(5)]
    for number_range in ranges:
        await block_subject(harness.redis, name_block(range_key(number_range)), 3_600_000)
        await harness.refusal(number_range)

    assert {block.range for block in await harness.guard.blocks()} == set(ranges)
    assert await harness.guard.gauges() == {"fraud_blocks": 5}


async def test_a_range_and_its_calls_share_one_key(harness: GuardHarness) -> None:
    await harness.call(1)

    keys = {range_key(PUMPED), client_key("shop"), stored(name_limit(KEY, "calls_per_day", "everybody"))}
    assert await keys_of(harness.redis) == keys
