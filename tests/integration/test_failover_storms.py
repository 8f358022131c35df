"""After a failover four workers do not storm the nodes; the nodes of a cluster have alike much to do."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from tests.integration.conftest import run, sandbox_settings
from tests.redis_cluster import Cluster
from tests.redis_nodes import Node
from tests.sentinels import Topology

WORKERS = 4
CALLERS = 8
LIMITS = dict.fromkeys(("calls_per_range", "calls_per_client", "calls_per_day"), 1_000_000)
# What a worker may do on one node in the second after a failover; it does about half of that.
CONNECTIONS, SCRIPT_LOADS, QUESTIONS = 8, 40, 15

PHONES = (f"+7901{number * 1009 % 10_000_000:07}" for number in itertools.count())  # of as many ranges


@pytest.fixture(scope="module", params=["sentinel", "cluster"])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology | Cluster]:
    folder = tmp_path_factory.mktemp("nodes")
    with Topology(folder) if request.param == "sentinel" else Cluster(folder) as nodes:
        yield nodes


@contextlib.asynccontextmanager
async def workers(nodes: Topology | Cluster, count: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Run the application as several workers."""
    settings = sandbox_settings(nodes.url, limit=LIMITS, guard={"enabled": False})
    async with contextlib.AsyncExitStack() as stack:
        network = VirtualNetwork(pace=0.02)
        yield [await stack.enter_async_context(run(create_app(settings, network))) for _ in range(count)]


def counted(node: Node) -> Counter[str]:
    """Return how many connections a node has accepted, and how many commands of each kind it has run."""
    found = node.send("INFO", "everything")
    commands = {
        name.removeprefix("cmdstat_"): stats["calls"] for name, stats in found.items() if name.startswith("cmdstat_")
    }
    return Counter({"connections": found["total_connections_received"], **commands})


async def start_many(worker: httpx.AsyncClient) -> None:
    while True:
        answer = await worker.post("/verify/start", json={"phone": next(PHONES)})
        assert answer.status_code in {201, 503}, answer.text
        await asyncio.sleep(0.01)


async def test_a_failover_causes_no_storm(nodes: Topology | Cluster) -> None:
    async with workers(nodes, WORKERS) as running:
        load = [asyncio.create_task(start_many(running[number % WORKERS])) for number in range(CALLERS)]
        try:
            await asyncio.sleep(1)
            primary = nodes.primary if isinstance(nodes, Topology) else nodes.primaries[0]
            primary.kill()
            await asyncio.to_thread(nodes.wait_for_failover, primary)
            asked = nodes.sentinels if isinstance(nodes, Topology) else []
            others = [node for node in (*nodes.nodes, *asked) if node is not primary]
            before = [await asyncio.to_thread(counted, node) for node in others]
            await asyncio.sleep(1)
            after = [await asyncio.to_thread(counted, node) for node in others]
            assert not any(task.done() for task in load)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
    await asyncio.to_thread(nodes.mend)

    for counts in map(Counter.__sub__, after, before):
        questions = sum(counts[name] for name in ("cluster|slots", "cluster|info", "sentinel|master"))
        assert counts["connections"] <= CONNECTIONS * WORKERS, counts
        assert counts["script|load"] <= SCRIPT_LOADS * WORKERS, counts
        assert questions <= QUESTIONS * WORKERS, counts


@pytest.mark.parametrize("nodes", ["cluster"], indirect=True)
async def test_many_phones_keep_the_nodes_of_a_cluster_alike_busy(nodes: Cluster) -> None:
    async with workers(nodes, 1) as (worker,):
        before = [await asyncio.to_thread(counted, node) for node in nodes.primaries]
        for _ in range(20):
            starts = [worker.post("/verify/start", json={"phone": next(PHONES)}) for _ in range(20)]
            assert {answer.status_code for answer in await asyncio.gather(*starts)} == {201}
        after = [await asyncio.to_thread(counted, node) for node in nodes.primaries]
    scripts = [counts["evalsha"] for counts in map(Counter.__sub__, after, before)]

    assert max(scripts) <= 1.5 * sum(scripts) / len(scripts), scripts
