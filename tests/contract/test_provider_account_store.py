"""The cached balance in Redis: one worker at a time reads the account, and a crashed reader is replaced."""

import asyncio
from datetime import timedelta
from decimal import Decimal

import pytest
from redis.asyncio import Redis

from app.store.connection import connect
from app.store.provider_account import RedisBalanceCache
from app.store.scripts import ScriptRunner
from app.verification.errors import StoreUnavailable
from app.verification.provider_account import BalanceCache, CachedBalance
from tests.ageing import age

INTERVAL, LEASE, SECOND = timedelta(seconds=60), timedelta(seconds=30), timedelta(seconds=1)
MARGIN = 10 * SECOND  # no pause of a busy machine is so long
KEY = "pv3{balance}"


def make_cache(redis: Redis) -> RedisBalanceCache:
    return RedisBalanceCache(ScriptRunner(redis, timeout=5), lease=LEASE)


@pytest.fixture
def cache(redis: Redis) -> BalanceCache:
    return make_cache(redis)


async def test_of_a_hundred_concurrent_workers_exactly_one_reads_the_account(redis: Redis) -> None:
    """From two instances of the service, so that not all commands are sent in one write."""
    instances = [make_cache(redis) for _ in range(2)]

    cached = await asyncio.gather(*(instances[number % 2].read(INTERVAL) for number in range(100)))
    assert sum(each.is_reader for each in cached) == 1
    assert {each.rub for each in cached} == {None}


@pytest.mark.parametrize("rub", ["123.45", "0", "-3.50", "1E+3"])
async def test_a_written_balance_is_read_by_all_with_its_age(redis: Redis, cache: BalanceCache, rub: str) -> None:
    await cache.read(INTERVAL)
    await cache.write(Decimal(rub))
    await age(redis, 7 * SECOND)

    seen = await make_cache(redis).read(INTERVAL)
    assert (seen.rub, seen.is_reader) == (Decimal(rub), False)
    assert 7 * SECOND <= seen.age < 7 * SECOND + MARGIN


async def test_a_write_returns_the_balance_before(cache: BalanceCache) -> None:
    assert [await cache.write(Decimal(rub)) for rub in ("50", "44.40", "0")] == [None, Decimal(50), Decimal("44.40")]


async def test_one_worker_reads_the_account_again_after_the_interval(redis: Redis, cache: BalanceCache) -> None:
    await cache.write(Decimal(50))
    await age(redis, INTERVAL - MARGIN)
    assert not (await cache.read(INTERVAL)).is_reader

    await age(redis, MARGIN)
    readers = [(await cache.read(INTERVAL)).is_reader for _ in range(3)]
    assert readers == [True, False, False]


async def test_a_crashed_reader_is_replaced_when_its_lease_ends(redis: Redis, cache: BalanceCache) -> None:
    assert (await cache.read(INTERVAL)).is_reader
    await age(redis, LEASE - MARGIN)
    assert not (await cache.read(INTERVAL)).is_reader

    await age(redis, MARGIN)
    assert (await cache.read(INTERVAL)).is_reader


async def test_writing_the_balance_ends_the_lease(redis: Redis, cache: BalanceCache) -> None:
    """A lease may be longer than the interval."""
    await cache.read(INTERVAL)
    await cache.write(Decimal(50))
    await age(redis, LEASE / 3)

    assert (await cache.read(LEASE / 3)).is_reader


async def test_the_last_balance_is_kept_while_no_new_one_is_written(redis: Redis, cache: BalanceCache) -> None:
    await cache.write(Decimal(50))
    for _ in range(5):
        await age(redis, INTERVAL)
        assert (await cache.read(INTERVAL)).rub == Decimal(50)


async def test_the_key_always_has_a_ttl(redis: Redis, cache: BalanceCache) -> None:
    for act in (cache.read(INTERVAL), cache.write(Decimal(50)), cache.read(INTERVAL)):
        await act
        assert await redis.keys() == [KEY.encode()]
        assert 0 < await redis.pttl(KEY) <= 3_600_000


async def test_an_empty_cache_has_no_balance(cache: BalanceCache) -> None:
    await cache.read(INTERVAL)

    assert await cache.read(INTERVAL) == CachedBalance(is_reader=False)


async def test_without_redis_reading_the_cache_raises_store_unavailable() -> None:
    nowhere = connect("unix:///nonexistent/socket", timeout=0.1)

    with pytest.raises(StoreUnavailable):
        await make_cache(nowhere).read(INTERVAL)
    await nowhere.aclose()
