"""Replies of durable scripts wait for replicas: too few in time is an error; other scripts are not held up."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial

import hiredis
import pytest

from app.cli.checks import Result, check_waiting
from app.store.connection import connect, connect_any
from app.store.scripts import Script, ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.verification.errors import StoreFailure, StoreUnavailable, VerificationAlreadyUsed
from app.verification.model import Status
from app.verification.ports import CodeCheck
from tests.contract.test_redis_acl import KEY, POLICY, RIGHT, new_call
from tests.redis_cluster import Cluster
from tests.redis_nodes import OPTIONS, USER, Node, free_ports, until
from tests.starting import start
from tests.waiting import eventually, timing

TIMEOUT = 4.0  # seconds; half of it is a replica's


class Count(Script):
    """Increment a counter, and return it."""

    def __init__(self, *, is_durable: bool) -> None:
        super().__init__("verification", "read", is_durable=is_durable)
        self.name, self.source = "count", "#!lua\nreturn redis.call('INCR', KEYS[1])"
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self.load = hiredis.pack_command(("SCRIPT", "LOAD", self.source))  # type: ignore[arg-type] # its stub is wrong


DURABLE, PLAIN = Count(is_durable=True), Count(is_durable=False)


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Run a primary and a replica."""
    folder = tmp_path_factory.mktemp("replication")
    primary, replica = (Node(folder / str(port), port, OPTIONS, user=USER) for port in free_ports(2))
    primary.start()
    replica.start("--replicaof", f"127.0.0.1 {primary.port}")
    until(lambda: replica.send("ROLE")[3] == "connected")
    yield primary, replica
    primary.kill()
    replica.resume()
    replica.kill()


@pytest.fixture
async def runner(nodes: tuple[Node, Node]) -> AsyncIterator[ScriptRunner]:
    redis = connect(f"redis://{USER}@{nodes[0].address}", timeout=TIMEOUT)
    runner = ScriptRunner(redis, timeout=TIMEOUT, wait_replicas=1)
    yield runner
    await runner.aclose()
    await redis.aclose()


async def test_a_durable_script_is_answered_once_the_replica_has_it(
    nodes: tuple[Node, Node], runner: ScriptRunner
) -> None:
    replies = await asyncio.gather(*(runner.run(DURABLE, [f"{{{number}}}"], []) for number in range(50)))

    assert replies == [1] * 50
    assert nodes[1].send("DBSIZE") == 50


async def test_one_wait_ends_each_batch(nodes: tuple[Node, Node], runner: ScriptRunner) -> None:
    await runner.run(DURABLE, ["{warm}"], [])
    nodes[0].send("CONFIG", "RESETSTAT")

    await asyncio.gather(*(runner.run(DURABLE, [f"{{{number}}}"], []) for number in range(50)))

    statistics = nodes[0].send("INFO", "commandstats")
    assert (statistics["cmdstat_evalsha"]["calls"], statistics["cmdstat_wait"]["calls"]) == (50, 1)


async def test_without_a_replica_a_durable_script_fails_in_half_the_timeout_and_has_run_once(
    nodes: tuple[Node, Node], runner: ScriptRunner
) -> None:
    await runner.run(DURABLE, ["{a}"], [])
    nodes[1].pause()
    began = time.monotonic()

    async with timing() as seconds:
        with pytest.raises(StoreUnavailable) as raised:
            await runner.run(DURABLE, ["{a}"], [])
        assert seconds() < 0.9 * TIMEOUT

    assert raised.value.reason is StoreFailure.TOO_FEW_REPLICAS
    assert time.monotonic() - began > 0.4 * TIMEOUT
    assert nodes[0].send("GET", "pv3{a}") == "2"
    nodes[1].resume()
    assert await runner.run(DURABLE, ["{a}"], []) == 3


async def test_other_scripts_do_not_wait(nodes: tuple[Node, Node], runner: ScriptRunner) -> None:
    await asyncio.gather(runner.run(DURABLE, ["{a}"], []), runner.run(PLAIN, ["{b}"], []))
    nodes[1].pause()
    waiting = asyncio.create_task(runner.run(DURABLE, ["{a}"], []))
    await asyncio.sleep(0.01)

    async with timing() as seconds:
        assert await runner.run(PLAIN, ["{b}"], []) == 2
        assert seconds() < 0.4 * TIMEOUT

    with pytest.raises(StoreUnavailable):
        await waiting


async def test_a_lost_connection_is_reported_and_nothing_is_repeated(
    nodes: tuple[Node, Node], runner: ScriptRunner
) -> None:
    await runner.run(DURABLE, ["{a}"], [])
    nodes[1].pause()
    waiting = asyncio.create_task(runner.run(DURABLE, ["{a}"], []))
    await eventually(partial(asyncio.to_thread, nodes[0].send, "GET", "pv3{a}"), lambda found: found == "2")
    nodes[0].send("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")

    with pytest.raises(StoreUnavailable) as raised:
        await waiting

    assert raised.value.reason is StoreFailure.CONNECTION_LOST
    assert nodes[0].send("GET", "pv3{a}") == "2"


async def test_a_user_without_the_permission_is_reported(nodes: tuple[Node, Node], runner: ScriptRunner) -> None:
    nodes[0].send("ACL", "SETUSER", "service", "-wait")

    with pytest.raises(StoreUnavailable) as raised:
        await runner.run(DURABLE, ["{a}"], [])

    assert raised.value.reason is StoreFailure.ACCESS_DENIED
    assert nodes[0].send("GET", "pv3{a}") == "1"


async def test_a_script_that_is_not_loaded_is_loaded_and_then_waits(
    nodes: tuple[Node, Node], runner: ScriptRunner
) -> None:
    await runner.run(DURABLE, ["{a}"], [])
    nodes[0].send("SCRIPT", "FLUSH")

    assert await runner.run(DURABLE, ["{a}"], []) == 2
    nodes[0].send("SCRIPT", "FLUSH")
    nodes[1].pause()
    with pytest.raises(StoreUnavailable):
        await runner.run(DURABLE, ["{a}"], [])


async def test_a_right_check_that_was_not_replicated_is_answered_once_it_is(
    nodes: tuple[Node, Node], runner: ScriptRunner
) -> None:
    store = RedisVerificationStore(runner, phone_key=KEY)
    verification = (await start(store, new_call(1), POLICY)).verification
    keyed = CodeCheck(client="shop", candidates=[RIGHT], length=6, retry_digest="of the key")
    nodes[1].pause()

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.check_by_id(verification.id, keyed, POLICY)
    nodes[1].resume()

    assert (await store.check_by_id(verification.id, keyed, POLICY)).status is Status.VERIFIED
    with pytest.raises(VerificationAlreadyUsed):
        await store.check_by_id(verification.id, CodeCheck(client="shop", candidates=[RIGHT], length=6), POLICY)


async def test_a_repeated_cancellation_waits_too(nodes: tuple[Node, Node], runner: ScriptRunner) -> None:
    store = RedisVerificationStore(runner, phone_key=KEY)
    verification = (await start(store, new_call(1), POLICY)).verification
    nodes[1].pause()

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.cancel("shop", verification.id)
    nodes[1].resume()

    assert (await store.cancel("shop", verification.id)).stored_status is Status.CANCELED


async def test_on_a_cluster_each_primary_waits_for_its_own_replicas(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Cluster(tmp_path_factory.mktemp("cluster"), node_timeout=15_000) as cluster:
        redis = connect_any(cluster.url, timeout=TIMEOUT)
        runner = ScriptRunner(redis, timeout=TIMEOUT, wait_replicas=1)
        keys = [[f"{{{number}}}"] for number in range(60)]
        await asyncio.gather(*(runner.run(DURABLE, key, []) for key in keys))
        primary = cluster.primaries[0]
        cluster.replica_of(primary).pause()

        results = await asyncio.gather(*(runner.run(DURABLE, key, []) for key in keys), return_exceptions=True)

        await runner.aclose()
        await redis.aclose()
    assert {isinstance(result, StoreUnavailable) for result in results} == {True, False}


async def test_doctor_counts_the_replicas_that_confirm(nodes: tuple[Node, Node]) -> None:
    redis = connect(f"redis://{USER}@{nodes[0].address}", timeout=TIMEOUT)
    results = {wanted: await check_waiting(redis, replicas=wanted, timeout=TIMEOUT) for wanted in (0, 1, 2)}
    nodes[0].send("ACL", "SETUSER", "service", "-wait")
    (denied,) = await check_waiting(redis, replicas=1, timeout=TIMEOUT)
    await redis.aclose()

    assert results[0] == []
    assert [(found.result, found.message[:10]) for found in results[1]] == [(Result.DOUBTFUL, "1 replicas")]
    assert [(found.result, found.message[:10]) for found in results[2]] == [(Result.WRONG, "1 replicas")]
    assert (denied.result, "WAIT" in denied.message) == (Result.WRONG, True)


async def test_without_the_setting_nothing_waits(nodes: tuple[Node, Node]) -> None:
    redis = connect(f"redis://{USER}@{nodes[0].address}", timeout=TIMEOUT)
    runner = ScriptRunner(redis, timeout=TIMEOUT)
    await runner.run(DURABLE, ["{a}"], [])
    nodes[1].pause()

    async with timing() as seconds:
        assert await runner.run(DURABLE, ["{a}"], []) == 2
        assert seconds() < 0.4 * TIMEOUT

    assert "cmdstat_wait" not in nodes[0].send("INFO", "commandstats")
    assert str(nodes[0].send("CLIENT", "LIST")).count("name=plusofon-verify") == 1
    await redis.aclose()
