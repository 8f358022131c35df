"""The checks of ``doctor`` behind Redis Sentinel: whether a failover would succeed, and lose little."""

import asyncio
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from redis.asyncio import Redis

from app.cli.checks import Finding, Result, doubtful, fine, grade_redis, wrong
from app.store.health import RedisHealth, RedisUnreachable, SentinelReport, examine, examine_sentinel
from app.store.sentinel import PrimaryPool

_NOT_OF_REPLICAS = {"redis role", "redis round trip"}

_T = TypeVar("_T")


async def check_sentinels(redis: Redis, *, timeout: float) -> list[Finding]:  # noqa: ASYNC109 - of each wait, not of all
    """Check the Sentinels, the replicas that they know, and what the primary does without these; else nothing."""
    pool = redis.connection_pool
    if not isinstance(pool, PrimaryPool):
        return []
    examinations = (
        _or_why(examine_sentinel(sentinel, pool.service_name, timeout=timeout)) for sentinel in pool.sentinels.values()
    )
    reports = dict(zip(pool.sentinels, await asyncio.gather(*examinations), strict=True))
    answers = [report for report in reports.values() if isinstance(report, SentinelReport)]
    newest = max(answers, key=lambda report: report.epoch, default=None)
    findings = [*_grade_sentinels(reports, newest)]
    if newest:
        states = await asyncio.gather(*(_examine_replica(pool, *address, timeout) for address in newest.replicas))
        for ((host, port), is_linked), state in zip(newest.replicas.items(), states, strict=True):
            findings += _grade_replica(f"{host}:{port}", state, is_linked=is_linked)
        if not newest.replicas:
            findings.append(doubtful("redis replicas", "there is none, so there is no failover", "Add two replicas."))
    primary = await _or_why(examine(redis, timeout=timeout))
    if isinstance(primary, RedisHealth):  # else ``check_redis`` says so
        findings.append(_grade_min_replicas(primary.min_replicas))
    return findings


async def _or_why(examination: Awaitable[_T]) -> _T | str:
    try:
        return await examination
    except RedisUnreachable as error:
        return str(error)


async def _examine_replica(pool: PrimaryPool, host: str, port: int, timeout: float) -> RedisHealth | str:  # noqa: ASYNC109 - as above
    async with pool.open_node(host, port) as replica:
        return await _or_why(examine(replica, timeout=timeout))


def _grade_sentinels(reports: Mapping[str, SentinelReport | str], newest: SentinelReport | None) -> Iterator[Finding]:
    grade = doubtful if newest else wrong
    for address, report in reports.items():
        if isinstance(report, str):
            advice = "Check REDIS_URL, that the Sentinel runs, and that this machine may connect to it."
            yield grade("redis sentinels", f"{address} {report}", advice)
        elif newest and report.primary != newest.primary:
            message = f"{address} names another primary than the newest configuration has"
            yield doubtful("redis sentinels", message, "Check that the Sentinels reach each other and the primary.")
        elif not report.has_quorum:
            message = f"{address} reaches too few others: it would not fail over"
            yield doubtful("redis sentinels", message, "Ask it with SENTINEL CKQUORUM, and start the missing ones.")
    if answers := sum(isinstance(report, SentinelReport) for report in reports.values()):
        yield fine("redis sentinels", f"{answers} of {len(reports)} answer")


def _grade_replica(address: str, state: RedisHealth | str, *, is_linked: bool) -> Iterator[Finding]:
    if isinstance(state, str) or not is_linked:
        why = state if isinstance(state, str) else "is not connected to the primary"
        advice = "Start it, and check its masterauth; if it is gone for good, send SENTINEL RESET to each Sentinel."
        yield doubtful("redis replicas", f"{address} {why}", advice)
        return
    grades = [*grade_redis(state), _grade_min_replicas(state.min_replicas)]
    faults = [one for one in grades if one.result is not Result.FINE and one.check not in _NOT_OF_REPLICAS]
    for fault in faults:
        yield replace(fault, message=f"replica {address}: {fault.message}")
    if not faults:
        yield fine("redis replicas", f"{address} can take over")


def _grade_min_replicas(count: int | None) -> Finding:
    if count is None:
        return doubtful("redis min-replicas", "unknown", "Make sure that min-replicas-to-write is at least 1.")
    if not count:
        message = "min-replicas-to-write is 0: a primary that is cut off keeps taking writes, which are lost"
        return doubtful("redis min-replicas", message, "Set min-replicas-to-write 1 on every node.")
    return fine("redis min-replicas", f"min-replicas-to-write is {count}")
