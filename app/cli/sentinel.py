"""The checks of ``doctor`` behind Redis Sentinel: whether a failover would succeed, and lose little."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from redis.asyncio import Redis

from app.cli.checks import Finding, Result, doubtful, fine, grade_redis, wrong
from app.store.health import RedisHealth, RedisUnreachable, SentinelHealth, examine, examine_sentinels
from app.store.sentinel import PrimaryPool

_BY_NODE = {"redis", "redis eviction", "redis persistence", "redis permissions", "clock"}


async def check_sentinels(redis: Redis, *, timeout: float) -> list[Finding]:  # noqa: ASYNC109 - of each wait, not of all
    """Check the Sentinels, the replicas that they know, and what the primary does without these; else nothing."""
    pool = redis.connection_pool
    if not isinstance(pool, PrimaryPool):
        return []
    health = await examine_sentinels(pool, within=timeout)
    findings = [*_grade_sentinels(health), *_grade_replicas(health)]
    with suppress(RedisUnreachable):  # ``check_redis`` reports it
        findings += _grade_min_replicas(await examine(redis, within=timeout))
    return findings


def _grade_sentinels(health: SentinelHealth) -> Iterator[Finding]:
    grade = doubtful if len(health.silent) < health.asked else wrong
    for address, why in health.silent.items():
        advice = "Check REDIS_URL, that the Sentinel runs, and that this machine may connect to it."
        yield grade("redis sentinels", f"{address} {why}", advice)
    for address in health.outdated:
        message = f"{address} names another primary than the newest configuration has"
        yield doubtful("redis sentinels", message, "Check that the Sentinels reach each other and the primary.")
    for address in health.without_quorum:
        message = f"{address} reaches too few others: it would not fail over"
        yield doubtful("redis sentinels", message, "Ask it with SENTINEL CKQUORUM, and start the missing ones.")
    if answers := health.asked - len(health.silent):
        yield fine("redis sentinels", f"{answers} of {health.asked} answer")


def _grade_replicas(health: SentinelHealth) -> Iterator[Finding]:
    if not health.replicas and len(health.silent) < health.asked:
        yield doubtful("redis replicas", "there is none, so there is no failover", "Add a replica, better two.")
    for address, state in health.replicas.items():
        if isinstance(state, str):
            advice = "Start it, and check its masterauth; if it is gone for good, send SENTINEL RESET to each Sentinel."
            yield doubtful("redis replicas", f"{address} {state}", advice)
            continue
        faults = [one for one in grade_redis(state) if one.result is not Result.FINE and one.check in _BY_NODE]
        for fault in faults:
            yield replace(fault, message=f"replica {address}: {fault.message}")
        if not faults:
            yield fine("redis replicas", f"{address} can take over")


def _grade_min_replicas(primary: RedisHealth) -> Iterator[Finding]:
    if primary.min_replicas is None:
        yield doubtful("redis min-replicas", "unknown", "Make sure that min-replicas-to-write is at least 1.")
    elif not primary.min_replicas:
        message = "min-replicas-to-write is 0: a primary that is cut off keeps taking writes, which are lost"
        yield doubtful("redis min-replicas", message, "Set min-replicas-to-write 1 on every node.")
    else:
        yield fine("redis min-replicas", f"min-replicas-to-write is {primary.min_replicas}")
