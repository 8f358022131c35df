"""The checks of ``doctor`` on a Redis Cluster: whether each slot is served, and each primary can be replaced."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

from app.cli.checks import (
    Finding,
    Result,
    doubtful,
    fine,
    grade_min_replicas,
    grade_redis,
    grade_replica,
    or_why,
    wrong,
)
from app.store.cluster import SLOTS, Cluster, Topology
from app.store.connection import AnyRedis
from app.store.health import RedisHealth, examine, examine_cluster

_IF_GONE = "Start it, and check its masterauth; if it is gone for good, send CLUSTER FORGET to each node."


async def check_cluster(redis: AnyRedis, *, timeout: float, prefix: str) -> list[Finding]:  # noqa: ASYNC109 - of each wait, not of all
    """Check the nodes of a cluster; without a cluster, nothing."""
    if not isinstance(redis, Cluster):
        return []
    topology = await or_why(examine_cluster(redis, timeout=timeout))
    if isinstance(topology, str):
        advice = "Check REDIS_URL, that the nodes run, and that this machine may connect to them."
        return [wrong("redis cluster", f"no node of REDIS_URL is of use: it {topology}", advice)]
    examinations = (or_why(examine(redis.client(node), timeout=timeout, prefix=prefix)) for node in topology.nodes)
    states = dict(zip(topology.nodes, await asyncio.gather(*examinations), strict=True))
    findings = [*_grade_topology(topology)]
    for primary, replicas in topology.replicas.items():
        findings += _grade_primary(primary, states[primary], replicas=len(replicas))
        for replica in replicas:
            state = states[replica]
            is_linked = isinstance(state, RedisHealth) and state.is_linked is not False
            findings += grade_replica(replica, state, is_linked=is_linked, advice=_IF_GONE)
    return findings


def _grade_topology(topology: Topology) -> Iterator[Finding]:
    advice = "Look at CLUSTER NODES; redis-cli --cluster fix repairs what can be repaired."
    if unserved := topology.owners.count(None):
        yield wrong("redis cluster", f"{unserved} of {SLOTS} slots have no primary", advice)
    elif not topology.is_ok:
        yield wrong("redis cluster", "its nodes say that it is down (cluster_state)", advice)
    else:
        yield fine("redis cluster", f"{len(topology.replicas)} primaries serve all {SLOTS} slots")


def _grade_primary(address: str, state: RedisHealth | str, *, replicas: int) -> Iterator[Finding]:
    if isinstance(state, str):
        yield wrong("redis primaries", f"{address} {state}", "Start it, or have a replica take over.")
        return
    faults = [
        one for one in (*grade_redis(state), grade_min_replicas(state.min_replicas)) if one.result is not Result.FINE
    ]
    for fault in faults:
        yield replace(fault, message=f"primary {address}: {fault.message}")
    if not replicas:
        yield doubtful("redis replicas", f"primary {address} has none, so there is no failover", "Add one.")
    elif not faults:
        yield fine("redis primaries", f"{address} takes writes; replicas: {replicas}")
