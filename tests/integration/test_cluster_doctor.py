"""``doctor`` on a cluster: the slots, each primary, and the replicas that may take over."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from app.cli import checks
from app.cli.checks import Finding, Result
from app.cli.cluster import _grade_primary, check_cluster
from app.store.cluster import SLOTS
from app.store.cluster import Cluster as RedisCluster
from app.store.connection import connect_any
from app.store.health import examine as examine_node
from tests.redis_cluster import Cluster
from tests.redis_nodes import OPTIONS, Node, free_ports


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = ("--save", "3600 1", "--min-replicas-to-write", "1", "--cluster-replica-no-failover", "yes")
    with Cluster(tmp_path_factory.mktemp("cluster"), *options) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    yield running_cluster
    running_cluster.mend()


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no round trip for a slow one: the tests beside this one may keep the machine busy."""
    monkeypatch.setattr(checks, "_SLOW", timedelta(minutes=1))


async def examine(url: str) -> list[Finding]:
    redis = connect_any(url, timeout=5)
    try:
        return await check_cluster(redis, timeout=5, prefix="pv")
    finally:
        await redis.aclose()


async def faults(url: str) -> list[tuple[str, Result, str]]:
    found = await examine(url)
    assert all(bool(one.advice) is (one.result is not Result.FINE) for one in found)
    return [(one.check, one.result, one.message) for one in found if one.result is not Result.FINE]


async def test_a_healthy_cluster_passes_every_check(cluster: Cluster) -> None:
    found = await examine(cluster.url)

    assert [one for one in found if one.result is not Result.FINE] == []
    assert {one.message for one in found} == {
        f"3 primaries serve all {SLOTS} slots",
        *(f"{node.address} takes writes; replicas: 1" for node in cluster.primaries),
        *(f"{cluster.replica_of(node).address} can take over" for node in cluster.primaries),
    }


async def test_a_redis_that_is_no_cluster_has_no_such_lines(cluster: Cluster) -> None:
    assert await examine(f"redis://{cluster.nodes[0].address}") == []


async def test_without_any_node_the_cluster_is_an_error() -> None:
    ((check, result, message),) = await faults("redis+cluster://127.0.0.1:1,127.0.0.1:2")

    assert (check, result) == ("redis cluster", Result.WRONG)
    assert message == "no node of REDIS_URL is of use: it is not reached"


async def test_a_server_that_is_no_cluster_is_an_error(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    server = Node(tmp_path, port, OPTIONS)
    server.start()
    try:
        ((check, result, message),) = await faults(f"redis+cluster://{server.address}")
    finally:
        server.kill()

    assert (check, result) == ("redis cluster", Result.WRONG)
    assert message == "no node of REDIS_URL is of use: it is no node of a cluster"


async def test_a_slot_without_a_primary_is_an_error(cluster: Cluster) -> None:
    owner = cluster.primary_of(0)
    for node in cluster.nodes:
        node.send("CLUSTER", "DELSLOTS", 0)
    try:
        found = await faults(cluster.url)
    finally:
        for node in cluster.primaries:
            node.send("CLUSTER", "SETSLOT", 0, "NODE", cluster.id_of(owner))

    assert ("redis cluster", Result.WRONG, f"1 of {SLOTS} slots have no primary") in found


async def test_a_replica_that_is_down_is_a_warning(cluster: Cluster) -> None:
    replica = cluster.replica_of(cluster.primaries[0])
    replica.kill()

    assert ("redis replicas", Result.DOUBTFUL, f"{replica.address} is not reached") in await faults(cluster.url)


async def test_a_primary_that_is_down_is_an_error(cluster: Cluster) -> None:
    primary = cluster.primaries[0]
    primary.kill()

    assert ("redis primaries", Result.WRONG, f"{primary.address} is not reached") in await faults(cluster.url)


async def test_a_primary_without_a_replica_is_a_warning(cluster: Cluster) -> None:
    redis = connect_any(cluster.url, timeout=5)
    assert isinstance(redis, RedisCluster)
    address = cluster.primaries[0].address
    state = await examine_node(redis.client(address), timeout=5)
    await redis.aclose()

    (found,) = _grade_primary(address, state, replicas=0)

    assert (found.result, found.check) == (Result.DOUBTFUL, "redis replicas")
    assert found.message == f"primary {address} has none, so there is no failover"


async def test_the_configuration_of_every_node_is_examined(cluster: Cluster) -> None:
    primary = cluster.primaries[1]
    replica = cluster.replica_of(primary)
    for node in (primary, replica):
        node.send("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "min-replicas-to-write", 0)
        node.send("ACL", "SETUSER", "service", "-publish")
    try:
        found = await faults(cluster.url)
    finally:
        for node in (primary, replica):
            node.send("CONFIG", "SET", "maxmemory-policy", "noeviction", "min-replicas-to-write", 1)
            node.send("ACL", "SETUSER", "service", "+publish")

    assert [(check, result) for check, result, _ in found] == [
        ("redis eviction", Result.WRONG),
        ("redis permissions", Result.WRONG),
        ("redis min-replicas", Result.DOUBTFUL),
    ] * 2
    assert [message.partition(":")[0] for *_, message in found] == [
        *["primary 127.0.0.1"] * 3,
        *["replica 127.0.0.1"] * 3,
    ]
