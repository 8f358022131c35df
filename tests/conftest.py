"""Fixtures for all tests: a real embedded Redis server, a client and a store."""

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from app.sandbox.embedded import EmbeddedServer
from app.store.connection import connect
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore

PHONE_KEY = b"a key of the tests, known to all"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with EmbeddedServer() as server:
        yield server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url, timeout=1)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def store(redis: Redis) -> RedisVerificationStore:
    return RedisVerificationStore(ScriptRunner(redis, timeout=1), phone_key=PHONE_KEY)
