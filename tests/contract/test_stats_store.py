"""The statistics in Redis: exact over all processes, also after failed writes, and small."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.store.call_following import RedisCallQueue
from app.store.connection import connect
from app.store.layout import ms, name_limit
from app.store.scripts import ScriptRunner
from app.store.stats import RedisStats
from app.verification.channels import Channel
from app.verification.domain_events import (
    BalanceChanged,
    CallAsked,
    CallEnded,
    CallNeverPlaced,
    CallPlaced,
    CallRefused,
    CodeRejected,
    LimitHit,
    Segment,
    VerificationCanceled,
    VerificationStarted,
    VerificationSucceeded,
)
from app.verification.errors import BalanceTooLow, ProviderRejected, StoreUnavailable
from app.verification.model import CallStatus, Status
from app.verification.policy import Allowance, Limit
from app.verification.ports import CallId
from app.verification.stats import CallCounts, CallPrices, Dimension, InvalidPeriod, Period
from tests.keys import stored
from tests.limit_keys import age_limit, read_limit
from tests.limiters import KEY, make_limiter

PRICE, UNANSWERED = Decimal("2.50"), Decimal("0.3125")
PRICES = CallPrices(
    answered=dict.fromkeys(Channel, PRICE) | {Channel.FLASH_CALL: Decimal("0.60")},
    unanswered=dict.fromkeys(Channel, UNANSWERED) | {Channel.REVERSE_CALL: Decimal(0)},
)
VOICE = Segment("shop", Channel.VOICE, "mts")
FLASH = Segment("shop", Channel.FLASH_CALL, "t2")
REVERSE = Segment("bank", Channel.REVERSE_CALL, "mts")
MOSCOW = ZoneInfo("Europe/Moscow")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EPOCH = date(1970, 1, 1)


class ReplyLosingRunner(ScriptRunner):
    """Run a script, and then raise as if its reply was lost."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, timeout=5)
        self.lost = 0

    async def run(self, script, keys, arguments):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
        reply = await super().run(script, keys, arguments)
        if self.lost:
            self.lost -= 1
            raise StoreUnavailable
        return reply


def make_stats(runner: ScriptRunner, zone: tzinfo = UTC) -> RedisStats:
    return RedisStats(runner, prices=PRICES, zone=zone, count_calls=lambda _: None)


def stats_on(redis: Redis, zone: tzinfo = UTC) -> RedisStats:
    return make_stats(ScriptRunner(redis, timeout=5), zone)


@pytest.fixture
def stats(redis: Redis) -> RedisStats:
    return stats_on(redis)


async def set_counts(redis: Redis, key: str, counts: Mapping[Segment | str, str]) -> None:
    """Store counts as if they had been added in another hour or on another day."""
    fields: dict[Any, Any] = {
        f"{it.client}|{it.channel}|{it.operator}" if isinstance(it, Segment) else it: packed
        for it, packed in counts.items()
    }
    await redis.hset(stored(f"{{stats}}:{key}"), mapping=fields)
    await redis.expire(stored(f"{{stats}}:{key}"), 3600)


def days_ago(days: int, zone: tzinfo = UTC) -> date:
    return datetime.now(zone).date() - days * DAY


def day_key(day: date) -> str:
    return f"d:{(day - EPOCH).days}"


async def test_a_day_counts_every_kind_of_event(stats: RedisStats) -> None:
    for event in (
        CallAsked(VOICE),
        CallAsked(VOICE),
        VerificationStarted(VOICE),
        VerificationStarted(VOICE),
        CallPlaced(VOICE, CallStatus.INITIATED),
        CallPlaced(VOICE, CallStatus.INITIATED),
        CallPlaced(FLASH, CallStatus.UNCONFIRMED),
        CallEnded(VOICE, CallStatus.COMPLETED),
        CallRefused(Channel.VOICE, BalanceTooLow()),
        CallRefused(Channel.FLASH_CALL, ProviderRejected("no")),
        LimitHit("call_cooldown", "start", 30),
        CodeRejected(Status.PENDING),
        CodeRejected(Status.LOCKED),
        VerificationSucceeded(VOICE),
        VerificationCanceled(),
        BalanceChanged(Decimal("-5.25")),
        BalanceChanged(Decimal(-1)),
        BalanceChanged(Decimal(100)),
    ):
        stats.observe(event)
    await stats.flush()

    day = await stats.read(by=[Dimension.CLIENT, Dimension.CHANNEL])

    today = datetime.now(UTC).date()
    assert day.period == Period(today, today, UTC)
    assert day.rows == {
        ("shop", "voice"): CallCounts(asked=2, started=2, initiated=2, completed=1, verified=1, cost=50000),
        ("shop", "flash_call"): CallCounts(unconfirmed=1, cost=6000),
    }
    assert day.total == CallCounts(asked=2, started=2, initiated=2, unconfirmed=1, completed=1, verified=1, cost=56000)
    assert day.refused == {(Channel.VOICE, "balance_too_low"): 1, (Channel.FLASH_CALL, "rejected"): 1}
    assert day.limits == {"call_cooldown": 1}
    assert (day.others["wrong"], day.others["locked"], day.others["canceled"]) == (2, 1, 1)
    assert (day.others["balance_fall"], day.others["balance_rise"]) == (62500, 1000000)
    assert (day.total.placed, day.total.spend_rub, day.total.conversion) == (3, Decimal("5.60"), 1 / 3)


@pytest.mark.parametrize(
    ("events", "rub"),
    [
        ([CallPlaced(VOICE, CallStatus.INITIATED)], "2.50"),
        ([CallPlaced(VOICE, CallStatus.UNCONFIRMED)], "2.50"),
        ([CallPlaced(VOICE, CallStatus.UNCONFIRMED), CallNeverPlaced(VOICE)], "0.00"),
        ([CallPlaced(VOICE, CallStatus.INITIATED), CallEnded(VOICE, CallStatus.COMPLETED)], "2.50"),
        ([CallPlaced(VOICE, CallStatus.INITIATED), CallEnded(VOICE, CallStatus.BUSY)], "0.3125"),
        ([CallPlaced(VOICE, CallStatus.UNCONFIRMED), CallEnded(VOICE, CallStatus.NO_ANSWER)], "0.3125"),
        ([CallPlaced(FLASH, CallStatus.INITIATED)], "0.60"),
        ([CallPlaced(REVERSE, CallStatus.INITIATED)], "0.00"),
        ([CallPlaced(REVERSE, CallStatus.INITIATED), CallEnded(REVERSE, CallStatus.COMPLETED)], "2.50"),
    ],
)
async def test_a_call_costs_by_its_channel_and_whether_it_was_answered(
    stats: RedisStats, events: list[CallPlaced], rub: str
) -> None:
    for event in events:
        stats.observe(event)
    await stats.flush()

    assert str((await stats.read()).total.spend_rub) == rub


async def test_a_call_that_was_never_placed_is_not_counted_as_placed(stats: RedisStats) -> None:
    stats.observe(CallPlaced(VOICE, CallStatus.UNCONFIRMED))
    await stats.flush()
    stats.observe(CallNeverPlaced(VOICE))
    await stats.flush()

    assert (await stats.read()).total.placed == 0


async def test_a_day_without_events_is_empty(stats: RedisStats) -> None:
    yesterday = days_ago(1)
    found = await stats.read(Period(yesterday, yesterday, UTC), [Dimension.CLIENT])

    assert (found.rows, found.total, found.others) == ({}, {}, {})
    assert (found.total.placed, found.total.spend_rub, found.total.conversion) == (0, Decimal(0), None)


async def test_another_day_is_read_by_its_date(stats: RedisStats, redis: Redis) -> None:
    day = days_ago(399)
    await set_counts(redis, day_key(day), {VOICE: "0,0,0,0,0,0,0,0,7,0"})

    assert (await stats.read(Period(day, day, UTC))).total["verified"] == 7
    assert (await stats.read()).total["verified"] == 0


async def test_counters_of_another_version_are_ignored_and_missing_ones_are_zero(
    stats: RedisStats, redis: Redis
) -> None:
    names = ("shop|telepathy|mts", "shop|voice", "shop|voice|mts|x", "refused:telepathy:rejected", "dreams")
    day = days_ago(3)
    await set_counts(redis, day_key(day), dict.fromkeys(names, "1") | {VOICE: "2,1"})

    found = await stats.read(Period(day, day, UTC))

    assert found.total == CallCounts(asked=2, started=1)
    assert (found.refused, found.limits) == ({}, {})


async def test_nothing_is_written_without_events(stats: RedisStats, redis: Redis) -> None:
    assert await stats.flush() == timedelta(seconds=1)
    await stats.aclose()

    assert await redis.keys() == []


async def test_hours_are_kept_for_35_days_and_days_for_400(stats: RedisStats, redis: Redis) -> None:
    stats.observe(VerificationCanceled())
    await stats.flush()

    now = datetime.now(UTC).timestamp()
    hour, day = stored(f"{{stats}}:h:{int(now // 3600)}"), stored(f"{{stats}}:d:{int(now // 86400)}")
    assert len(await redis.keys()) == 3
    assert 35 * 86400 <= await redis.ttl(hour) <= 36 * 86400
    assert 400 * 86400 <= await redis.ttl(day) <= 401 * 86400
    (last_batch,) = [key async for key in redis.scan_iter(stored("{stats}:w:*"))]
    assert 3590 <= await redis.ttl(last_batch) <= 3600


@pytest.mark.parametrize(
    ("days", "zone", "by", "reason"),
    [
        (400, UTC, (), "only the last 400 days are kept"),
        (36, UTC, [Dimension.HOUR], "hours and other time zones than UTC go back 35 days"),
        (36, MOSCOW, (), "hours and other time zones than UTC go back 35 days"),
    ],
)
async def test_a_period_that_is_not_kept_is_refused(
    stats: RedisStats, days: int, zone: tzinfo, by: list[Dimension], reason: str
) -> None:
    day = days_ago(days, zone)
    with pytest.raises(InvalidPeriod, match=reason):
        await stats.read(Period(day, day, zone), by)


async def test_hours_add_up_to_the_days_of_another_time_zone(redis: Redis) -> None:
    """Two hours before and after midnight in Moscow; for UTC both are of the same day."""
    day = days_ago(9)
    midnight = int(datetime(day.year, day.month, day.day, 21, tzinfo=UTC).timestamp()) // 3600  # UTC+3
    stats = stats_on(redis)
    await set_counts(redis, f"h:{midnight - 1}", {VOICE: "1"})
    await set_counts(redis, f"h:{midnight}", {VOICE: "10", "limit:x": "1"})

    by = [Dimension.DAY, Dimension.HOUR]
    before, after = [await stats.read(Period(it, it, MOSCOW), by) for it in (day, day + DAY)]

    assert before.rows == {(str(day), f"{day}T23:00+03:00"): CallCounts(asked=1)}
    assert after.rows == {(str(day + DAY), f"{day + DAY}T00:00+03:00"): CallCounts(asked=10)}
    assert (before.limits, after.limits) == ({}, {"x": 1})
    both = await stats.read(Period(day, day, UTC), [Dimension.HOUR])
    assert sorted(both.rows) == [(f"{day}T20:00+00:00",), (f"{day}T21:00+00:00",)]


async def test_days_are_those_of_the_time_zone_of_the_settings(redis: Redis) -> None:
    """At least one of two zones that are 26 hours apart has another date than UTC."""
    east, west = ZoneInfo("Pacific/Kiritimati"), ZoneInfo("Etc/GMT+12")
    for zone in (east, west):
        stats = stats_on(redis, zone)
        stats.observe(CallAsked(VOICE))
        await stats.flush()

    for zone in (east, west):
        assert await redis.exists(stored(f"{{stats}}:{day_key(days_ago(0, zone))}"))
        assert (await stats_on(redis, zone).read(by=[Dimension.DAY])).rows == {
            (str(days_ago(0, zone)),): CallCounts(asked=1)
        }


async def test_each_client_keeps_its_own_counts_when_operators_no_longer_fit(redis: Redis) -> None:
    """An hour or a day holds 200 segments, then 200 more without the operator, then one for each channel."""
    stats = stats_on(redis)
    for client in range(30):
        for operator in range(30):
            stats.observe(CallAsked(Segment(f"client-{client}", Channel.VOICE, f"operator-{operator}")))
        stats.observe(LimitHit("call_cooldown", "start", 30))
        await stats.flush()

    found = await stats.read(by=[Dimension.CLIENT])
    assert found.rows == {(f"client-{client}",): CallCounts(asked=30) for client in range(30)}
    assert found.limits == {"call_cooldown": 30}
    operators = (await stats.read(by=[Dimension.OPERATOR])).rows
    assert 0 < operators["other",]["asked"] < 900

    for client in range(30, 400):
        stats.observe(CallAsked(Segment(f"client-{client}", Channel.VOICE, "mts")))
    await stats.flush()

    found = await stats.read(by=[Dimension.CLIENT])
    assert found.total == CallCounts(asked=30 * 30 + 370)
    assert found.rows["other",]["asked"] > 0
    for key in await redis.keys(stored("{stats}:[hd]:*")):
        assert await redis.hlen(key) <= 404


async def test_an_hour_of_a_usual_deployment_takes_two_kilobytes(redis: Redis) -> None:
    """Three clients, two channels and six operators."""
    stats = stats_on(redis)
    segments = [
        Segment(f"client-{client}", channel, operator)
        for client in range(3)
        for channel in (Channel.VOICE, Channel.FLASH_CALL)
        for operator in ("mts", "beeline", "megafon", "t2", "motiv", "unknown")
    ]
    for segment in segments * 120:
        stats.observe(CallAsked(segment))
        stats.observe(VerificationStarted(segment))
        stats.observe(CallPlaced(segment, CallStatus.INITIATED))
        stats.observe(CallEnded(segment, CallStatus.COMPLETED))
        stats.observe(VerificationSucceeded(segment))
    await stats.flush()

    (hour,) = [key async for key in redis.scan_iter(stored("{stats}:h:*"))]
    assert await redis.hlen(hour) == 36
    assert await redis.object("encoding", hour) == b"listpack"
    assert (await redis.memory_usage(hour, samples=0) or 0) <= 2560


async def test_a_hundred_concurrent_processes_are_counted_exactly(redis: Redis) -> None:
    runners = [ScriptRunner(redis, timeout=5) for _ in range(10)]  # ten connections, ten processes on each
    processes = [make_stats(runner) for runner in runners for _ in range(10)]
    for process in processes:
        process.observe(CallPlaced(VOICE, CallStatus.INITIATED))

    await asyncio.gather(*(process.flush() for process in processes for _ in range(3)))

    total = (await processes[0].read()).total
    assert (total.placed, total.spend_rub) == (100, Decimal(250))


async def test_a_batch_whose_reply_was_lost_is_retried_and_counted_once(redis: Redis) -> None:
    runner = ReplyLosingRunner(redis)
    stats = make_stats(runner)
    stats.observe(VerificationCanceled())
    runner.lost = 2
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await stats.flush()
        stats.observe(VerificationCanceled())  # belongs to the next batch

    await stats.flush()
    assert (await stats.read()).others["canceled"] == 1
    await stats.flush()

    assert (await stats.read()).others["canceled"] == 3


async def test_each_batch_is_handed_to_the_metrics_once(redis: Redis) -> None:
    runner = ReplyLosingRunner(redis)
    batches: list[Mapping[Segment, CallCounts]] = []
    stats = RedisStats(runner, prices=PRICES, zone=UTC, count_calls=batches.append)
    stats.observe(CallAsked(VOICE))
    runner.lost = 1
    with pytest.raises(StoreUnavailable):
        await stats.flush()

    await stats.flush()
    await stats.flush()

    assert batches == [{VOICE: CallCounts(asked=1)}]


async def test_closing_writes_pending_events(redis: Redis) -> None:
    runner = ReplyLosingRunner(redis)
    stats = make_stats(runner)
    stats.observe(VerificationSucceeded(VOICE))
    runner.lost = 1
    with pytest.raises(StoreUnavailable):
        await stats.flush()
    stats.observe(VerificationSucceeded(VOICE))

    await stats.aclose()

    assert (await stats.read()).total["verified"] == 2


async def test_closing_without_redis_logs_the_lost_events_and_does_not_block(caplog: pytest.LogCaptureFixture) -> None:
    unreachable = connect("redis://127.0.0.1:1/0", timeout=0.2)
    stats = stats_on(unreachable)
    stats.observe(VerificationCanceled())

    await stats.aclose()
    await unreachable.aclose()

    (lost,) = [record for record in caplog.records if record.message == "stats.lost"]
    assert vars(lost)["events"] == 1


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

    runner = ScriptRunner(redis, timeout=5, round_trip=round_trip, waited=lambda name, _: waited.append(name))
    stats = make_stats(runner)
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
    queue = RedisCallQueue(ScriptRunner(redis, timeout=5))
    assert await queue.lag() == timedelta(0)
    await queue.schedule(CallId("vrf_0a11b22c33d44e55f667788", 1), timedelta(hours=1))
    assert await queue.lag() == timedelta(0)
    for number, minutes in ((2, 1), (3, 5)):
        await queue.schedule(CallId("vrf_0a11b22c33d44e55f667788", number), timedelta(minutes=-minutes))

    assert timedelta(minutes=5) <= await queue.lag() <= timedelta(minutes=5, seconds=5)
