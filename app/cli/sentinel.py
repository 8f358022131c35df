"""The checks of ``doctor`` behind Redis Sentinel: whether a failover would succeed, and lose little."""

import asyncio
from collections.abc import Iterator, Mapping

from app.cli.checks import Finding, doubtful, fine, grade_min_replicas, grade_replica, or_why, wrong
from app.store.cluster import Cluster
from app.store.connection import AnyRedis
from app.store.health import RedisHealth, SentinelReport, examine, examine_sentinel
from app.store.sentinel import PrimaryPool

_IF_GONE = "Start it, and check its masterauth; if it is gone for good, send SENTINEL RESET to each Sentinel."


async def check_sentinels(redis: AnyRedis, *, timeout: float) -> list[Finding]:  # noqa: ASYNC109 - of each wait, not of all
    """Check the Sentinels, the replicas that they know, and what the primary does without these; else nothing."""
    if isinstance(redis, Cluster) or not isinstance(pool := redis.connection_pool, PrimaryPool):
        return []
    examinations = (
        or_why(examine_sentinel(sentinel, pool.service_name, timeout=timeout)) for sentinel in pool.sentinels.values()
    )
    reports = dict(zip(pool.sentinels, await asyncio.gather(*examinations), strict=True))
    answers = [report for report in reports.values() if isinstance(report, SentinelReport)]
    newest = max(answers, key=lambda report: report.epoch, default=None)
    findings = [*_grade_sentinels(reports, newest)]
    if newest:
        states = await asyncio.gather(*(_examine_replica(pool, *address, timeout) for address in newest.replicas))
        for ((host, port), is_linked), state in zip(newest.replicas.items(), states, strict=True):
            findings += grade_replica(f"{host}:{port}", state, is_linked=is_linked, advice=_IF_GONE)
        if not newest.replicas:
            findings.append(doubtful("redis replicas", "there is none, so there is no failover", "Add two replicas."))
    primary = await or_why(examine(redis, timeout=timeout))
    if isinstance(primary, RedisHealth):  # else ``check_redis`` says so
        findings.append(grade_min_replicas(primary.min_replicas))
    return findings


async def _examine_replica(pool: PrimaryPool, host: str, port: int, timeout: float) -> RedisHealth | str:  # noqa: ASYNC109 - as above
    async with pool.open_node(host, port) as replica:
        return await or_why(examine(replica, timeout=timeout))


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
