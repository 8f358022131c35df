"""A cluster fails over and moves slots under load: some requests are refused; nothing is called or verified twice."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.store.layout import with_version
from tests.integration.conftest import run, sandbox_settings
from tests.integration.test_sentinel import (
    MANY,
    PHONES,
    RECOVERED_WITHIN,
    STORE_TIMEOUT,
    Load,
    progress,
    start,
    under_load,
)
from tests.redis_cluster import Cluster
from tests.redis_nodes import Node
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    yield running_cluster
    running_cluster.mend()


@asynccontextmanager
async def two_workers(
    cluster: Cluster, network: VirtualNetwork, store_timeout: float
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Run the application twice."""
    redis = {"url": cluster.url, "timeout_seconds": store_timeout}
    settings = sandbox_settings(cluster.url, redis=redis, limit=MANY, guard={"enabled": False})
    async with run(create_app(settings, network)) as first, run(create_app(settings, network)) as second:
        yield [first, second]


@pytest.fixture
async def workers(cluster: Cluster, network: VirtualNetwork) -> AsyncIterator[list[httpx.AsyncClient]]:
    async with two_workers(cluster, network, STORE_TIMEOUT) as workers:
        yield workers


def fail_over(cluster: Cluster, primary: Node) -> None:
    cluster.fail_over(primary)


def kill(cluster: Cluster, primary: Node) -> None:
    primary.kill()


def pause(cluster: Cluster, primary: Node) -> None:
    primary.pause()


def isolate(cluster: Cluster, primary: Node) -> None:
    """Leave the service alone with a primary that nobody else reaches, and that refuses writes without a replica."""
    primary.send("CONFIG", "SET", "min-replicas-to-write", 1)  # not on its replica, which has none of its own
    cluster.isolate(primary)


@pytest.mark.parametrize("fail", [fail_over, kill, pause, isolate])
async def test_a_failover_under_load_is_a_moment_of_503_and_nothing_happens_twice(
    fail: Callable[[Cluster, Node], None],
    cluster: Cluster,
    workers: list[httpx.AsyncClient],
    network: VirtualNetwork,
) -> None:
    followed = await start(workers[0], next(PHONES))
    primary = cluster.primaries[0]
    events = asyncio.create_task(workers[0].get(f"/verify/{followed}/events"))
    async with under_load(workers, network) as load:
        failed_at = time.monotonic()
        await asyncio.to_thread(fail, cluster, primary)
        await asyncio.to_thread(cluster.wait_for_failover, primary)
        await progress(load)
        if fail is not kill:
            await asyncio.to_thread(cluster.bring_back, primary)
            primary.send("CONFIG", "SET", "min-replicas-to-write", 0)
            await asyncio.to_thread(cluster.wait_until_whole)
            await progress(load)
    for phone in load.guesses:
        await load.check_twice(phone)
    await workers[1].post(f"/verify/{followed}/cancel")

    assert max(load.refused_at, default=failed_at) - failed_at < RECOVERED_WITHIN
    require_once(load, network)
    assert '"status":"canceled"' in (await events).text


async def test_slots_move_under_load_and_nothing_is_lost(cluster: Cluster, network: VirtualNetwork) -> None:
    async with two_workers(cluster, network, PATIENCE) as workers:
        async with under_load(workers, network) as load:
            moved = await asyncio.to_thread(move_slots_of_phones, cluster, 20)
            await progress(load)
        for phone in load.guesses:
            await load.check_twice(phone)

    assert moved > 0
    require_once(load, network)
    assert set(load.verified) == set(load.guesses)
    assert not load.refused_at


def require_once(load: Load, network: VirtualNetwork) -> None:
    """Require that each phone was called once, and each code verified at most once, without a long wait."""
    assert max(load.took) < 3 * STORE_TIMEOUT
    assert max(len(network.calls_of(phone)) for phone in load.phones) == 1
    assert Counter(load.verified).most_common(1)[0][1] == 1
    assert load.checks.keys() <= {200, 409, 503}  # 409: already used


def move_slots_of_phones(cluster: Cluster, count: int) -> int:
    """Move slots with the verifications of the load to another primary; return how many keys moved."""
    source, target, _ = cluster.primaries
    moved, slots = 0, dict[int, None]()
    for key in source.send("KEYS", f"{with_version('pv')}{{???}}:*"):
        slots[int(source.send("CLUSTER", "KEYSLOT", key))] = None
    for slot in [*slots][-count:]:
        moved += cluster.move_slot(slot, target)
    return moved
