"""``doctor`` behind Redis Sentinel: the Sentinels, the replicas, and what the primary does without these."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from app.cli.checks import Finding, Result
from app.cli.sentinel import _grade_sentinels, check_sentinels
from app.store.connection import connect
from app.store.health import SentinelReport
from tests.redis_nodes import Node, until
from tests.sentinels import Topology


@pytest.fixture(scope="module")
def running_topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    options = ("--save", "3600 1", "--min-replicas-to-write", "1")
    with Topology(tmp_path_factory.mktemp("sentinel"), *options) as topology:
        yield topology


@pytest.fixture
def topology(running_topology: Topology) -> Iterator[Topology]:
    yield running_topology
    running_topology.mend()


def replica_of(topology: Topology) -> Node:
    return next(node for node in topology.nodes if node is not topology.primary)


async def examine(url: str) -> list[Finding]:
    redis = connect(url, timeout=5)
    try:
        return await check_sentinels(redis, timeout=5)
    finally:
        await redis.aclose()


async def faults(url: str) -> list[tuple[str, Result, str]]:
    found = await examine(url)
    assert all(bool(one.advice) is (one.result is not Result.FINE) for one in found)
    return [(one.check, one.result, one.message) for one in found if one.result is not Result.FINE]


async def test_a_healthy_topology_passes_every_check(topology: Topology) -> None:
    found = await examine(topology.url)

    assert {one.result for one in found} == {Result.FINE}
    assert {one.message for one in found} == {
        "3 of 3 answer",
        *(f"{node.address} can take over" for node in topology.nodes if node is not topology.primary),
        "min-replicas-to-write is 1",
    }


async def test_a_redis_without_sentinels_has_no_such_lines(topology: Topology) -> None:
    assert await examine(f"redis://{topology.primary.address}") == []


async def test_missing_sentinels_and_a_lost_quorum_are_warnings(topology: Topology) -> None:
    dead, hanging, alive = topology.sentinels
    dead.kill()
    hanging.pause()
    await asyncio.to_thread(until, lambda: not topology.has_quorum(alive))

    assert await faults(topology.url) == [
        ("redis sentinels", Result.DOUBTFUL, f"{dead.address} is not reached"),
        ("redis sentinels", Result.DOUBTFUL, f"{hanging.address} does not answer in time"),
        ("redis sentinels", Result.DOUBTFUL, f"{alive.address} reaches too few others: it would not fail over"),
    ]


def test_a_sentinel_that_names_another_primary_is_a_warning() -> None:
    newest = SentinelReport(epoch=2, primary=(b"10.0.0.2", 6379), replicas={}, has_quorum=True)
    outdated = replace(newest, epoch=1, primary=(b"10.0.0.1", 6379))

    found, answers = _grade_sentinels({"10.0.0.1:26379": outdated, "10.0.0.2:26379": newest}, newest)

    assert (found.result, answers.result) == (Result.DOUBTFUL, Result.FINE)
    assert found.message == "10.0.0.1:26379 names another primary than the newest configuration has"


async def test_no_sentinel_at_all_is_an_error(topology: Topology) -> None:
    url = "redis+sentinel://127.0.0.1:1/main"

    assert await faults(url) == [("redis sentinels", Result.WRONG, "127.0.0.1:1 is not reached")]


async def test_a_wrong_name_of_the_primary_is_an_error(topology: Topology) -> None:
    found = await faults(topology.url.replace("/main/", "/other/"))

    assert {(check, result) for check, result, _ in found} == {("redis sentinels", Result.WRONG)}
    assert all(message.endswith(" does not know the name of the primary in REDIS_URL") for *_, message in found)


async def test_faults_of_a_replica_are_found_before_it_becomes_primary(topology: Topology) -> None:
    replica = replica_of(topology)
    replica.send("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "min-replicas-to-write", 0)
    replica.send("ACL", "SETUSER", "service", "-publish")
    try:
        found = await faults(topology.url)
    finally:
        replica.send("CONFIG", "SET", "maxmemory-policy", "noeviction", "min-replicas-to-write", 1)
        replica.send("ACL", "SETUSER", "service", "+publish")

    assert [(check, result) for check, result, _ in found] == [
        ("redis eviction", Result.WRONG),
        ("redis permissions", Result.WRONG),
        ("redis min-replicas", Result.DOUBTFUL),
    ]
    assert all(message.startswith(f"replica {replica.address}: ") for *_, message in found)


async def test_a_replica_that_is_down_is_a_warning(topology: Topology) -> None:
    replica = replica_of(topology)
    replica.kill()

    assert await faults(topology.url) == [("redis replicas", Result.DOUBTFUL, f"{replica.address} is not reached")]


async def test_a_primary_that_takes_writes_without_replicas_is_a_warning(topology: Topology) -> None:
    primary = topology.primary
    primary.send("CONFIG", "SET", "min-replicas-to-write", 0)
    try:
        found = await faults(topology.url)
    finally:
        primary.send("CONFIG", "SET", "min-replicas-to-write", 1)

    assert [(check, result) for check, result, _ in found] == [("redis min-replicas", Result.DOUBTFUL)]
