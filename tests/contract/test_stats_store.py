"""The statistics of a day in Redis: exact over all processes, also after failed writes."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.store.call_following import RedisCallQueue
from app.store.connection import connect
from app.store.layout import ms, name_limit
from app.store.scripts import ScriptRunner
from app.store.stats import DayStats, RedisStats
from app.verification.channels import Channel
from app.verification.domain_events import (
    CallEnded,
    CallPlaced,
    CallRefused,
    CodeChecked,
    LimitHit,
    VerificationCanceled,
    VerificationStarted,
)
from app.verification.errors import BalanceTooLow, ProviderRejected, StoreUnavailable
from app.verification.model import CallStatus, Status
from app.verification.policy import Allowance, Limit
from app.verification.ports import CallId
from tests.keys import stored
from tests.limit_keys import age_limit, read_limit
from tests.limiters import KEY, make_limiter

PRICE = Decimal("2.50")
DAY_NUMBER_OF_2026_01_31 = 20484


class ReplyLosingRunner(ScriptRunner):
    """Run a script, and then raise as if its reply was lost."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, timeout=1)
        self.lost = 0

    async def run(self, script, keys, arguments):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        reply = await super().run(script, keys, arguments)
        if self.lost:
            self.lost -= 1
            raise StoreUnavailable
        return reply


def stats_on(redis: Redis) -> RedisStats:
    return RedisStats(ScriptRunner(redis, timeout=5), call_price_rub=PRICE)


@pytest.fixture
def stats(redis: Redis) -> RedisStats:
    return stats_on(redis)


async def test_a_day_counts_every_kind_of_event(stats: RedisStats) -> None:
    for event in (
        VerificationStarted(Channel.VOICE),
        VerificationStarted(Channel.VOICE),
        CallPlaced(Channel.VOICE, CallStatus.INITIATED),
        CallPlaced(Channel.VOICE, CallStatus.INITIATED),
        CallPlaced(Channel.FLASH_CALL, CallStatus.UNCONFIRMED),
        CallEnded(Channel.VOICE, CallStatus.COMPLETED),
        CallRefused(Channel.VOICE, BalanceTooLow()),
        CallRefused(Channel.FLASH_CALL, ProviderRejected("no")),
        LimitHit("call_cooldown", "start", 30),
        CodeChecked(Status.PENDING),
        CodeChecked(Status.LOCKED),
        CodeChecked(Status.VERIFIED),
        VerificationCanceled(),
    ):
        stats.observe(event)
    await stats.flush()

    day = await stats.read()

    assert day == DayStats(
        day=datetime.now(UTC).date(),
        started={Channel.VOICE: 2},
        placed={(Channel.VOICE, CallStatus.INITIATED): 2, (Channel.FLASH_CALL, CallStatus.UNCONFIRMED): 1},
        ended={(Channel.VOICE, CallStatus.COMPLETED): 1},
        refused={(Channel.VOICE, "balance_too_low"): 1, (Channel.FLASH_CALL, "rejected"): 1},
        limits={"call_cooldown": 1},
        verified=1,
        wrong=2,
        locked=1,
        canceled=1,
        spend_rub=Decimal("7.50"),
    )
    assert (day.calls, day.conversion) == (3, 0.5)


async def test_a_day_without_events_is_empty(stats: RedisStats) -> None:
    day = await stats.read(date(2026, 1, 31))

    assert day == DayStats(day=date(2026, 1, 31))
    assert (day.calls, day.spend_rub) == (0, Decimal(0))
    assert day.conversion is None


async def test_another_day_is_read_by_its_date(stats: RedisStats, redis: Redis) -> None:
    await redis.hset(f"pv2{{stats}}:{DAY_NUMBER_OF_2026_01_31}", "verified", "7")

    assert (await stats.read(date(2026, 1, 31))).verified == 7
    assert (await stats.read()).verified == 0


async def test_unknown_counters_of_another_version_are_ignored(stats: RedisStats, redis: Redis) -> None:
    names = (
        "placed:telepathy:initiated",
        "placed:voice:vanished",
        "placed",
        "started:telepathy",
        "dreams",
        "refused:x:y",
    )
    await redis.hset(f"pv2{{stats}}:{DAY_NUMBER_OF_2026_01_31}", mapping=dict.fromkeys(names, 1))

    assert await stats.read(date(2026, 1, 31)) == DayStats(day=date(2026, 1, 31))


async def test_nothing_is_written_without_events(stats: RedisStats, redis: Redis) -> None:
    assert await stats.flush() == timedelta(seconds=1)
    await stats.aclose()

    assert await redis.keys() == []


async def test_every_key_has_a_ttl_of_at_most_eight_days(stats: RedisStats, redis: Redis) -> None:
    stats.observe(VerificationCanceled())
    await stats.flush()

    keys = await redis.keys()
    left = sorted([await redis.ttl(key) for key in keys])
    assert len(keys) == 2
    assert 3590 <= left[0] <= 3600
    assert 8 * 86400 - 10 <= left[1] <= 8 * 86400


async def test_a_hundred_concurrent_processes_are_counted_exactly(redis: Redis) -> None:
    runners = [ScriptRunner(redis, timeout=5) for _ in range(10)]  # ten connections, ten processes on each
    processes = [RedisStats(runner, call_price_rub=PRICE) for runner in runners for _ in range(10)]
    for process in processes:
        process.observe(CallPlaced(Channel.VOICE, CallStatus.INITIATED))

    await asyncio.gather(*(process.flush() for process in processes for _ in range(3)))

    day = await processes[0].read()
    assert (day.calls, day.spend_rub) == (100, Decimal(250))


async def test_a_batch_whose_reply_was_lost_is_retried_and_counted_once(redis: Redis) -> None:
    runner = ReplyLosingRunner(redis)
    stats = RedisStats(runner, call_price_rub=PRICE)
    stats.observe(VerificationCanceled())
    runner.lost = 2
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await stats.flush()
        stats.observe(VerificationCanceled())  # belongs to the next batch

    await stats.flush()
    assert (await stats.read()).canceled == 1
    await stats.flush()

    assert (await stats.read()).canceled == 3


async def test_closing_writes_pending_events(redis: Redis) -> None:
    runner = ReplyLosingRunner(redis)
    stats = RedisStats(runner, call_price_rub=PRICE)
    stats.observe(CodeChecked(Status.VERIFIED))
    runner.lost = 1
    with pytest.raises(StoreUnavailable):
        await stats.flush()
    stats.observe(CodeChecked(Status.VERIFIED))

    await stats.aclose()

    assert (await stats.read()).verified == 2


async def test_closing_without_redis_logs_the_lost_events_and_does_not_block(caplog: pytest.LogCaptureFixture) -> None:
    unreachable = connect("redis://127.0.0.1:1/0", timeout=0.2)
    stats = stats_on(unreachable)
    stats.observe(VerificationCanceled())

    await stats.aclose()
    await unreachable.aclose()

    assert "stats.lost" in caplog.text


async def test_reading_the_use_of_a_limit_does_not_change_it(redis: Redis) -> None:
    limit = Limit("calls_per_day", 10, timedelta(days=1))
    limits = make_limiter(redis)
    budget = Allowance(limit, "everybody")
    assert await limits.gauges(budget) == {"call_budget_used": 0}
    await limits.acquire("00000000000a", [budget])
    await age_limit(redis, stored(name_limit(KEY, "calls_per_day", "everybody")), ms(limit.period))
    await limits.acquire("00000000000b", [budget])
    await limits.acquire("00000000000c", [budget])
    before = await read_limit(redis, stored(name_limit(KEY, "calls_per_day", "everybody")))

    assert [await limits.gauges(budget) for _ in range(3)] == [{"call_budget_used": 2}] * 3
    assert await read_limit(redis, stored(name_limit(KEY, "calls_per_day", "everybody"))) == before


async def test_round_trips_are_observed_with_their_duration_and_failure(redis: Redis) -> None:
    trips: list[tuple[float, bool]] = []
    waited: list[str] = []

    def round_trip(seconds: float, *, failed: bool) -> None:
        trips.append((seconds, failed))

    runner = ScriptRunner(redis, timeout=1, round_trip=round_trip, waited=lambda name, _: waited.append(name))
    stats = RedisStats(runner, call_price_rub=PRICE)
    await asyncio.gather(stats.read(), stats.read(), stats.read())

    assert [failed for _, failed in trips] == [False]  # all in one round trip
    assert 0 < trips[0][0] < 1
    assert waited == ["stats.read"] * 3

    unreachable = connect("redis://127.0.0.1:1/0", timeout=0.2)
    broken = ScriptRunner(unreachable, timeout=0.2, round_trip=round_trip)
    with pytest.raises(StoreUnavailable) as raised:
        await broken.ping()
    await unreachable.aclose()
    assert trips[-1][1] is True
    assert isinstance(raised.value.__cause__, RedisConnectionError)


async def test_the_lag_of_the_call_queue_is_the_delay_of_its_longest_due_call(redis: Redis) -> None:
    queue = RedisCallQueue(ScriptRunner(redis, timeout=1))
    assert await queue.lag() == timedelta(0)
    await queue.schedule(CallId("vrf_0a11b22c33d44e55f667788", 1), timedelta(hours=1))
    assert await queue.lag() == timedelta(0)
    for number, minutes in ((2, 1), (3, 5)):
        await queue.schedule(CallId("vrf_0a11b22c33d44e55f667788", number), timedelta(minutes=-minutes))

    assert timedelta(minutes=5) <= await queue.lag() <= timedelta(minutes=5, seconds=5)
