"""Event streams on a cluster: a worker listens at one node, and hears of changes at all of them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest

from app.store.connection import AnyRedis, connect_any
from app.store.event_stream import RedisChanges
from app.store.layout import PREFIX, changes_channel
from tests.redis_cluster import Cluster
from tests.redis_nodes import Node
from tests.waiting import PATIENCE, eventually

ONE = "vrf_" + "1" * 23
CHANNEL = changes_channel(PREFIX)


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    yield running_cluster
    running_cluster.mend()


@pytest.fixture
async def redis(cluster: Cluster) -> AsyncIterator[AnyRedis]:
    client = connect_any(cluster.url, timeout=5)
    yield client
    await client.aclose()


def listened_at(cluster: Cluster) -> Node | None:
    return next((node for node in cluster.running if node.send("PUBSUB", "NUMSUB", CHANNEL)[1]), None)


async def hear(changes: RedisChanges, node: Node, feed: asyncio.Event) -> None:
    """Publish a change at a node until it is heard: while a worker connects again, messages are lost."""
    feed.clear()
    async with asyncio.timeout(PATIENCE):
        while not feed.is_set():
            await asyncio.to_thread(node.send, "PUBLISH", CHANNEL, ONE)
            await asyncio.sleep(0.05)


async def test_a_change_at_any_node_is_heard(cluster: Cluster, redis: AnyRedis) -> None:
    changes = RedisChanges(redis)
    async with changes.listen(ONE, client="shop") as feed:
        await asyncio.wait_for(feed.wait(), PATIENCE)
        for node in cluster.nodes:
            feed.clear()
            await asyncio.to_thread(node.send, "PUBLISH", CHANNEL, ONE)
            await asyncio.wait_for(feed.wait(), PATIENCE)


@pytest.mark.parametrize("failure", ["kill", "isolate"])
async def test_a_worker_whose_node_fails_or_is_cut_off_listens_at_another(
    failure: str, cluster: Cluster, redis: AnyRedis
) -> None:
    changes = RedisChanges(redis, quiet=0.2)
    async with changes.listen(ONE, client="shop") as feed:
        await asyncio.wait_for(feed.wait(), PATIENCE)
        node = await asyncio.to_thread(listened_at, cluster)
        assert node is not None
        await asyncio.to_thread(node.kill if failure == "kill" else lambda: cluster.isolate(node))

        # One that is cut off goes on with what the others had sent it, and learns late that a worker has gone.
        await eventually(partial(asyncio.to_thread, listened_at, cluster), lambda found: found not in (node, None))
        await hear(changes, next(other for other in cluster.primaries if other is not node), feed)
