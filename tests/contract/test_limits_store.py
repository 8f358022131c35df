"""Limits in Redis: no window has more events than its limit, in parallel too, and no key grows with traffic."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from app.store.layout import name_limit
from app.store.limits import RedisRateLimiter
from app.store.scripts import ScriptRunner
from app.verification.errors import RateLimited, StoreUnavailable
from app.verification.phone import Phone
from app.verification.policy import Allowance, Limit, Quota
from app.verification.ports import Reservation
from tests.ageing import age
from tests.keys import stored
from tests.limit_keys import read_limit
from tests.limiters import KEY, make_limiter
from tests.policies import make_policy

MINUTES_10 = timedelta(minutes=10)
EXACT, LARGE = (Limit("calls_per_address", count, MINUTES_10) for count in (7, 70))
SUB_WINDOW = 9375  # ms: a 64th of the period
MS = timedelta(milliseconds=1)
SUBJECT = "192.0.2.1"


def of(limit: Limit) -> list[Allowance]:
    return [Allowance(limit, SUBJECT)]


@pytest.fixture
def limits(redis: Redis) -> RedisRateLimiter:
    return make_limiter(redis)


@pytest.fixture(params=[EXACT, LARGE], ids=["exact", "large"])
def limit(request: pytest.FixtureRequest) -> Limit:
    assert isinstance(request.param, Limit)
    return request.param


async def acquire(limits: RedisRateLimiter, limit: Limit, events: int) -> list[Reservation]:
    """Acquire so many events at once; return those that were counted."""
    tokens = (f"{number:012x}" for number in range(events))
    answers = await asyncio.gather(*(limits.acquire(token, of(limit)) for token in tokens), return_exceptions=True)
    assert all(isinstance(answer, Reservation | RateLimited) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Reservation)]


async def test_of_many_events_at_once_as_many_are_counted_as_the_limit_says(
    limits: RedisRateLimiter, limit: Limit
) -> None:
    counted = await acquire(limits, limit, 200)

    assert sorted(quota.remaining for it in counted for quota in it.quotas) == [*range(limit.count)]
    with pytest.raises(RateLimited):
        await limits.require_room(of(limit))


async def test_a_hundred_refunds_of_one_event_at_once_make_room_for_one(limits: RedisRateLimiter) -> None:
    await acquire(limits, EXACT, 7)

    await asyncio.gather(*(limits.refund("000000000000", of(EXACT)) for _ in range(100)))

    await limits.require_room(of(EXACT))
    assert len(await acquire(limits, EXACT, 100)) == 1


async def test_a_large_limit_refunds_a_reservation_once_and_no_token_alone(limits: RedisRateLimiter) -> None:
    """It does not know tokens, so a refund after a lost reply would make room that was not taken."""
    first, *_ = await acquire(limits, LARGE, 70)
    await asyncio.gather(*(limits.refund(f"{number:012x}", of(LARGE)) for number in range(100)))
    with pytest.raises(RateLimited):
        await limits.require_room(of(LARGE))

    await limits.refund(first.token, of(LARGE))

    assert len(await acquire(limits, LARGE, 100)) == 1


async def test_an_event_that_was_refunded_leaves_no_key(limits: RedisRateLimiter, redis: Redis, limit: Limit) -> None:
    (reservation,) = await acquire(limits, limit, 1)
    await limits.refund(reservation.token, of(limit))

    assert await redis.keys() == []


async def test_looking_counts_nothing(limits: RedisRateLimiter, limit: Limit) -> None:
    await asyncio.gather(*(limits.require_room(of(limit)) for _ in range(100)))

    assert len(await acquire(limits, limit, 100)) == limit.count


async def test_there_is_room_again_once_the_oldest_event_has_left_the_window(
    limits: RedisRateLimiter, redis: Redis
) -> None:
    await acquire(limits, EXACT, 7)
    with pytest.raises(RateLimited) as refused:
        await limits.require_room(of(EXACT))
    assert 595 <= refused.value.retry_after <= 600

    await age(redis, EXACT.period)
    assert len(await acquire(limits, EXACT, 100)) == 7


async def test_a_large_limit_has_room_at_most_a_sub_window_later_and_says_so(
    limits: RedisRateLimiter, redis: Redis
) -> None:
    await acquire(limits, LARGE, 70)
    with pytest.raises(RateLimited) as refused:
        await limits.require_room(of(LARGE))
    assert 599 <= refused.value.retry_after <= ceil(600 + SUB_WINDOW / 1000)

    await acquire(limits, Limit("calls_per_address", 71, MINUTES_10), 1)  # keeps the key
    await age(redis, timedelta(seconds=refused.value.retry_after))
    assert len(await acquire(limits, LARGE, 100)) == 70


async def test_a_limit_does_not_grow_with_its_events(limits: RedisRateLimiter, redis: Redis) -> None:
    """Of three windows, with events in each of their sub-windows."""
    limit, key = Limit("calls_per_day", 4_000_000_000, MINUTES_10), stored(name_limit(KEY, "calls_per_day", SUBJECT))
    for _ in range(3 * 64):
        await acquire(limits, limit, 3)
        await age(redis, SUB_WINDOW * MS)

    assert len((await read_limit(redis, key))["events"]) <= 65
    assert await redis.strlen(key) < 600


@pytest.mark.parametrize(("before", "after"), [(7, 70), (70, 7)])
async def test_events_still_count_when_the_setting_of_a_limit_changes(
    limits: RedisRateLimiter, before: int, after: int
) -> None:
    old, new = (Limit("calls_per_address", events, MINUTES_10) for events in (before, after))
    counted = await acquire(limits, old, 100)
    assert len(counted) == before
    assert len(await acquire(limits, new, 100)) == max(0, after - before)

    for reservation in counted[:3]:
        await limits.refund(reservation.token, of(new))
    assert len(await acquire(limits, new, 100)) == (3 if after > before else 0)


async def test_a_server_whose_clock_is_behind_counts_the_events_of_the_one_before(
    limits: RedisRateLimiter, redis: Redis, limit: Limit
) -> None:
    """After a failover; here the events have moved into the future."""
    await acquire(limits, limit, limit.count - 1)
    await age(redis, -timedelta(minutes=1))

    (last,) = await acquire(limits, limit, 100)

    with pytest.raises(RateLimited):
        await limits.require_room(of(limit))
    await limits.refund(last.token, of(limit))


# What a sequence of events does to a limit, against a model that knows every event.

steps = st.one_of(
    st.tuples(st.just("acquire"), st.integers(1, 40)),
    st.tuples(st.just("wait"), st.integers(1, 700_000)),
    st.tuples(st.just("wait for"), st.integers(0, 100), st.sampled_from([-10_000, -1000, -100, 100, 1000, 10_000])),
    st.tuples(st.just("wait as told")),
    st.tuples(st.just("refund"), st.integers(0, 100)),
    st.tuples(st.just("refund again"), st.integers(0, 100)),
    st.tuples(st.just("lose"), st.integers(0, 100)),
)


@dataclass(slots=True)
class Event:
    """An event as its owner knows it; ``moment`` is by a clock that the test sets forward."""

    token: str
    moment: int
    is_refunded: bool = False
    is_lost: bool = False  # the reply was, so its owner knows the token only


@dataclass
class Model:
    """Counts events in a limit, and knows all of them."""

    redis: Redis
    limits: RedisRateLimiter
    limit: Limit
    events: list[Event] = field(default_factory=list)
    skipped: int = 0  # ms by which the clock was set forward
    told_to_wait_until: int = 0
    numbers: Iterator[int] = field(default_factory=count)

    async def acquire(self, events: int) -> None:
        for _ in range(events):
            token = f"{next(self.numbers):012x}"
            try:
                reservation = await self.limits.acquire(token, of(self.limit))
            except RateLimited as refusal:
                self.check_refusal(refusal)
                return
            moment = int(reservation.token.partition("@")[2]) + self.skipped
            self.events.append(Event(token, moment))
            self.told_to_wait_until = 0
            inside = [it for it in self.events if it.moment > moment - self._period and not it.is_refunded]
            assert len(inside) <= self.limit.count

    def check_refusal(self, refusal: RateLimited) -> None:
        """Check that there was no room a sub-window ago either."""
        now = int(time.time() * 1000) + self.skipped
        late = 0 if self.limit.count <= 64 else self._period // 64 + 1
        kept = [it for it in self.events if not it.is_refunded or (it.is_lost and late)]
        assert len([it for it in kept if it.moment > now - self._period - late - 50]) >= self.limit.count
        self.told_to_wait_until = self.told_to_wait_until or now + refusal.retry_after * 1000

    async def wait_as_told(self) -> None:
        """Wait as long as a refusal said; then there is room."""
        if self.told_to_wait_until:
            await self.wait(max(0, self.told_to_wait_until - self.skipped - int(time.time() * 1000)))
            await self.limits.require_room(of(self.limit))

    async def wait(self, ms: int) -> None:
        await age(self.redis, ms * MS)
        self.skipped += ms

    async def wait_for(self, number: int, ms: int) -> None:
        """Wait until so long after an event leaves the window."""
        now = int(time.time() * 1000) + self.skipped
        waits = [wait for it in self.events if (wait := it.moment + self._period + ms - now) > 0]
        if waits:
            await self.wait(waits[number % len(waits)])

    async def refund(self, number: int) -> None:
        if event := self._event(number, is_refunded=False):
            await self.limits.refund(f"{event.token}@{event.moment - self.skipped}", of(self.limit))
            event.is_refunded = True

    async def refund_again(self, number: int) -> None:
        if event := self._event(number, is_refunded=True):
            await self.limits.refund(event.token, of(self.limit))

    async def lose(self, number: int) -> None:
        if event := self._event(number, is_refunded=False):
            await self.limits.refund(event.token, of(self.limit))
            event.is_refunded = event.is_lost = True

    @property
    def _period(self) -> int:
        return self.limit.period // MS

    def _event(self, number: int, *, is_refunded: bool) -> Event | None:
        found = [it for it in self.events if it.is_refunded is is_refunded]
        return found[number % len(found)] if found else None


@pytest.mark.parametrize("events", [1, 7, 64, 65, 100])
@hypothesis_settings(max_examples=60)
@given(script=st.lists(steps, min_size=8, max_size=30))
async def test_no_window_ever_has_more_events_than_the_limit(
    redis: Redis, limits: RedisRateLimiter, events: int, script: list[tuple[Any, ...]]
) -> None:
    await redis.flushall()
    model = Model(redis, limits, Limit("calls_per_address", events, MINUTES_10))
    for name, *arguments in script:
        await getattr(model, name.replace(" ", "_"))(*arguments)


# On a cluster the limits of a start are in several slots.


class SlottedRunner(ScriptRunner):
    """Has each key in a slot of its own, and remembers the scripts and how many keys each had."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, timeout=5)
        self.has_slots = True
        self.ran: list[int] = []

    def slot_of(self, key: str) -> int:
        return hash(key)

    async def run(self, script, keys, arguments):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201 - as above
        self.ran.append(len(keys))
        return await super().run(script, keys, arguments)


ALL = [
    Allowance(Limit("calls_per_range", 3, MINUTES_10), "+79001234"),
    Allowance(Limit("calls_per_client", 100, MINUTES_10), "shop"),
    Allowance(Limit("calls_per_day", 100, MINUTES_10), "everybody"),
    Allowance(Limit("calls_per_address", 2, MINUTES_10), SUBJECT),
]


async def remaining(limits: RedisRateLimiter, allowances: Sequence[Allowance]) -> list[int]:
    """Return how many events each limit has room for."""
    reservation = await limits.acquire("ffffffffffff", allowances)
    await limits.refund(reservation.token, allowances)
    return [quota.remaining + 1 for quota in reservation.quotas]


@pytest.mark.standalone  # counts the round trips of one server
async def test_limits_of_several_slots_have_a_script_each_and_share_a_round_trip(redis: Redis) -> None:
    runner = SlottedRunner(redis)
    limits = make_limiter(redis, runner=runner)
    await limits.require_room(ALL)
    before = await redis.info("stats")
    runner.ran.clear()

    reservation = await limits.acquire("00000000000a", ALL)

    after = await redis.info("stats")
    assert runner.ran == [1, 1, 1, 1]
    assert after["total_reads_processed"] - before["total_reads_processed"] == 2  # one, and the INFO itself
    assert reservation.quotas == [Quota(it.limit, it.limit.count - 1) for it in ALL]


async def test_a_refund_finds_in_each_slot_what_was_counted_by_the_clock_of_its_node(redis: Redis) -> None:
    """The fraud guard and limits above 64 know an event by its moment only."""

    class OneByOne(SlottedRunner):
        async def run(self, script, keys, arguments):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - as above
            self.ran.append(len(keys))
            await asyncio.sleep(0.005 * len(self.ran))
            return await ScriptRunner.run(self, script, keys, arguments)

    policy = make_policy()
    allowances = [*policy.for_calls(client="shop", phone=Phone("+79001234567"), address="192.0.2.1")]
    assert len({it.guard for it in allowances}) > 1
    limits = make_limiter(redis, runner=OneByOne(redis))
    for order in (allowances, allowances[::-1]):
        reservation = await limits.acquire("00000000000a", order)

        await limits.refund(reservation.token, order)

        assert await redis.keys() == []


async def test_an_event_that_one_of_several_slots_refuses_is_counted_in_none(redis: Redis) -> None:
    limits = make_limiter(redis, runner=SlottedRunner(redis))
    await limits.acquire("00000000000a", ALL[3:])
    await limits.acquire("00000000000b", ALL[3:])

    with pytest.raises(RateLimited, match="calls_per_address"):
        await limits.acquire("00000000000c", ALL)

    assert await remaining(limits, ALL[:3]) == [3, 100, 100]


@pytest.mark.parametrize("is_slotted", [False, True])
async def test_the_refusal_names_the_first_full_limit_however_they_are_grouped(
    redis: Redis, *, is_slotted: bool
) -> None:
    limits = make_limiter(redis, runner=SlottedRunner(redis) if is_slotted else None)
    for number in range(3):
        await limits.acquire(f"{number:012x}", ALL[:1])
    for number in range(2):
        await limits.acquire(f"{number:012x}", ALL[3:])

    for allowances in (ALL, [ALL[3], *ALL[:3]]):
        with pytest.raises(RateLimited) as refused:
            await limits.acquire("00000000000f", allowances)
        assert refused.value.limit == allowances[0].limit.name


async def test_without_redis_every_method_raises_store_unavailable() -> None:
    async with Redis.from_url("redis://127.0.0.1:1", socket_connect_timeout=0.2) as nowhere:
        limits = make_limiter(nowhere)
        for use in (limits.require_room(ALL), limits.acquire("00000000000a", ALL), limits.gauges(ALL[2])):
            with pytest.raises(StoreUnavailable):
                await use
        with pytest.raises(StoreUnavailable):
            await limits.refund("00000000000a", ALL)
