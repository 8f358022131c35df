"""Fixtures for all tests: a real Redis of one of three kinds, a client and a store."""

import logging
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from app.sandbox.embedded import EmbeddedServer
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from tests.limiters import make_limiter
from tests.redis_cluster import Cluster
from tests.redis_commands import open_commands
from tests.sentinels import Topology

PHONE_KEY = b"a key of the tests, known to all"
# A busy machine is no fault of what is tested, and what examples share of a fixture they empty themselves.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")
_NODE_TIMEOUT = 15_000  # milliseconds: no pause of a busy machine is taken for a failure


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--redis", choices=("standalone", "sentinel", "cluster"), default="standalone", help="what the tests run on"
    )


def pytest_xdist_auto_num_workers() -> int:
    """Run two tests for each core (``--numprocesses auto``): half of their time they wait."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On several nodes run only the tests that use Redis, without those that are about one server."""
    if config.getoption("redis") != "standalone":
        chosen = [it for it in items if _uses_redis(it) and not it.get_closest_marker("standalone")]
        config.hook.pytest_deselected(items=[it for it in items if it not in chosen])
        items[:] = chosen


def _uses_redis(item: pytest.Item) -> bool:
    is_known = isinstance(item, pytest.Function) and "redis_url" in item.fixturenames
    return is_known or item.get_closest_marker("uses_redis") is not None


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Log as before: a command switches logs off for its process, which here is that of all tests."""
    yield
    logging.disable(logging.NOTSET)
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    match request.config.getoption("redis"):
        case "sentinel":
            with Topology(tmp_path_factory.mktemp("sentinel"), down_after=_NODE_TIMEOUT) as topology:
                yield topology.url
        case "cluster":
            with Cluster(tmp_path_factory.mktemp("cluster"), node_timeout=_NODE_TIMEOUT) as cluster:
                yield cluster.url
        case _:
            with EmbeddedServer() as server:
                yield server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """Return a client for the stores and for commands, of an empty Redis."""
    async with open_commands(redis_url) as client:
        await client.flushall()
        yield client


@pytest.fixture
def store(redis: Redis) -> RedisVerificationStore:
    limits = make_limiter(redis, key=PHONE_KEY)
    return RedisVerificationStore(ScriptRunner(redis, timeout=5), phone_key=PHONE_KEY, limits=limits)
