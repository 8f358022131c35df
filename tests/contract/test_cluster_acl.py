"""The permissions on a cluster in docs/operations.md: the service works with them, and each of them is needed."""

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.store.cluster import Cluster as ClusterClient
from app.store.connection import connect_any
from app.store.scripts import PROBE, ScriptRunner
from app.verification.errors import StoreUnavailable
from tests.contract.test_redis_acl import PASSWORD, ROOT, pasted
from tests.contract.test_redis_acl import RIGHTS as REDIS_RIGHTS
from tests.contract.test_sentinel_acl import create_user, refusals
from tests.redis_cluster import Cluster
from tests.redis_nodes import USER

(BLOCK,) = re.findall(r"```sh\n(CLUSTER_RIGHTS=.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
RIGHTS = shlex.split(BLOCK)[0].partition("=")[2].split()
TAG = "{a1b}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), node_timeout=15_000) as cluster:
        yield cluster


async def use(cluster: Cluster, *, but: str = "") -> set[str]:
    """Run scripts without one of the permissions, while a slot moves; return what was refused."""
    for node in cluster.nodes:
        create_user(node, [*REDIS_RIGHTS, *RIGHTS], but=but)
    redis = connect_any(cluster.url.replace(USER, f"verify:{PASSWORD}"), timeout=5)
    assert isinstance(redis, ClusterClient)
    runner = ScriptRunner(redis, timeout=5)
    slot = runner.slot_of(TAG)
    source = cluster.primary_of(slot)
    target = next(node for node in cluster.primaries if node is not source)
    with suppress(StoreUnavailable):
        await runner.ping()
        target.send("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        source.send("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
        await runner.run(PROBE, [TAG], [1000])
    await redis.aclose()
    cluster.move_slot(slot, target)
    return set[str]().union(*map(refusals, cluster.nodes))


async def test_the_service_works_with_the_documented_permissions(cluster: Cluster) -> None:
    assert await use(cluster) == set()


@pytest.mark.parametrize("right", RIGHTS)
async def test_every_documented_permission_is_needed(right: str, cluster: Cluster) -> None:
    assert await use(cluster, but=right) == {right.removeprefix("+")}


def test_the_documented_commands_extend_both_users_on_each_node(cluster: Cluster, tmp_path: Path) -> None:
    calls = pasted(tmp_path, BLOCK)

    assert {call[1] for call in calls} == {f"10.0.0.{number}" for number in range(1, 7)}
    for call in calls[:2]:
        assert cluster.nodes[0].send(*call[2:]) == "OK"
    assert {call[4] for call in calls} == {"verify", "verify-operator"}
    assert all(call[5:] == RIGHTS for call in calls)
