"""Limits in Redis: exact in any window, whatever comes in parallel."""

import asyncio
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from app.store.limits import RedisRateLimiter
from app.store.scripts import ScriptRunner
from app.verification.errors import RateLimited
from app.verification.policy import Allowance, Limit, Quota
from tests.ageing import age

LIMIT = Limit("calls_per_address", 7, timedelta(minutes=10))
ALLOWANCES = [Allowance(LIMIT, "192.0.2.1")]


@pytest.fixture
def limits(redis: Redis) -> RedisRateLimiter:
    return RedisRateLimiter(ScriptRunner(redis, timeout=1), key=b"a key of the tests, known to all")


async def acquire(limits: RedisRateLimiter, count: int) -> list[Quota]:
    tokens = (f"token-{number}" for number in range(count))
    answers = await asyncio.gather(*(limits.acquire(token, ALLOWANCES) for token in tokens), return_exceptions=True)
    assert all(isinstance(answer, list | RateLimited) for answer in answers)
    return [answer[0] for answer in answers if isinstance(answer, list)]


async def test_of_a_hundred_events_at_once_as_many_are_counted_as_the_limit_says(limits: RedisRateLimiter) -> None:
    assert sorted(quota.remaining for quota in await acquire(limits, 100)) == [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(RateLimited):
        await limits.require_room(ALLOWANCES)


async def test_a_hundred_refunds_of_one_event_at_once_make_room_for_one(limits: RedisRateLimiter) -> None:
    await acquire(limits, 7)

    await asyncio.gather(*(limits.refund("token-0", ALLOWANCES) for _ in range(100)))

    await limits.require_room(ALLOWANCES)
    assert len(await acquire(limits, 100)) == 1


async def test_looking_counts_nothing(limits: RedisRateLimiter) -> None:
    await asyncio.gather(*(limits.require_room(ALLOWANCES) for _ in range(100)))

    assert len(await acquire(limits, 100)) == 7


async def test_there_is_room_again_once_the_oldest_event_has_left_the_window(
    limits: RedisRateLimiter, redis: Redis
) -> None:
    await acquire(limits, 7)
    with pytest.raises(RateLimited) as refused:
        await limits.require_room(ALLOWANCES)
    assert 595 <= refused.value.retry_after <= 600

    await age(redis, LIMIT.period)
    assert len(await acquire(limits, 100)) == 7
