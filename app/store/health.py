"""Examines the Redis of the service without changing anything in it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from app.store.event_stream import CHANNEL
from app.store.failures import name_of, reason_of
from app.store.sentinel import PrimaryPool, ask_sentinel
from app.store.verifications import READ
from app.verification.errors import StoreFailure

_UNUSED_KEY = "pv:{000}:doctor"
_NO_ID = b"doctor"  # no verification has this id, so no listener is woken
_PINGS = 5
_WHY = {
    StoreFailure.TIMEOUT: "does not answer in time",
    StoreFailure.ACCESS_DENIED: "refuses the user name or the password",
    StoreFailure.UNREACHABLE: "is not reached",
}


class RedisUnreachable(Exception):
    """Redis cannot be used; the message ends a sentence that begins with its name, and contains no secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisHealth:
    """What Redis reports; none where its user may not ask.

    ``version`` is that of the protocol: Valkey reports the Redis that it replaces. ``persistence`` lists what outlives
    a restart. ``ahead`` is how far its clock is ahead of this machine's. ``refused`` lists the rights that the user of
    REDIS_URL lacks. ``min_replicas`` is its ``min-replicas-to-write``.
    """

    name: str | None
    version: tuple[int, ...] | None
    is_replica: bool | None
    eviction: str | None
    persistence: tuple[str, ...] | None
    round_trip: timedelta
    ahead: timedelta
    refused: tuple[str, ...]
    min_replicas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SentinelHealth:
    """What the Sentinels report, by the address of each.

    ``silent`` has why a Sentinel gives no answer. ``outdated`` lists those that name another primary than the newest
    configuration has, and ``without_quorum`` those that would not fail over. ``replicas`` has the state of each
    replica, or why it is not reached.
    """

    asked: int
    silent: Mapping[str, str]
    outdated: Sequence[str]
    without_quorum: Sequence[str]
    replicas: Mapping[str, RedisHealth | str]


async def examine(redis: Redis, *, within: float) -> RedisHealth:
    """Examine Redis, in ``within`` seconds altogether.

    Raises:
        RedisUnreachable: it does not answer, or refuses the connection.

    """
    try:
        async with asyncio.timeout(within):
            return await _examine(redis)
    except (RedisError, OSError) as error:
        raise RedisUnreachable(_why(error)) from None


async def examine_sentinels(pool: PrimaryPool, *, within: float) -> SentinelHealth:
    """Examine the Sentinels and the replicas that they know, each in ``within`` seconds."""
    replies = await asyncio.gather(
        *(_examine_sentinel(sentinel, pool.service_name, within) for sentinel in pool.sentinels.values())
    )
    reports = dict(zip(pool.sentinels, replies, strict=True))
    silent = {host: report for host, report in reports.items() if isinstance(report, str)}
    answers = {host: report for host, report in reports.items() if not isinstance(report, str)}
    newest = max(answers.values(), key=lambda report: report.epoch, default=None)

    async def examine_replica(host: str, port: int, *, is_linked: bool) -> RedisHealth | str:
        async with pool.open_node(host, port) as replica:
            try:
                health = await examine(replica, within=within)
            except RedisUnreachable as error:
                return str(error)
        return health if is_linked else "is not connected to the primary"

    replicas = newest.replicas if newest else {}
    states = await asyncio.gather(*(examine_replica(*at, is_linked=is_linked) for at, is_linked in replicas.items()))
    return SentinelHealth(
        asked=len(reports),
        silent=silent,
        outdated=[host for host, report in answers.items() if newest and report.primary != newest.primary],
        without_quorum=[host for host, report in answers.items() if not report.has_quorum],
        replicas=dict(zip((f"{host}:{port}" for host, port in replicas), states, strict=True)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """What one Sentinel reports; ``replicas`` by address, with whether each is connected to the primary."""

    epoch: int
    primary: tuple[bytes, int]
    replicas: Mapping[tuple[str, int], bool]
    has_quorum: bool


async def _examine_sentinel(sentinel: Redis, name: str, within: float) -> _Report | str:
    """Return what a Sentinel reports, or why it does not."""
    try:
        async with asyncio.timeout(within):
            primary, state, replicas = await ask_sentinel(sentinel, name, "GET-MASTER-ADDR-BY-NAME", "MASTER", "SLAVES")
            has_quorum = await _has_quorum(sentinel, name)
    except (RedisError, OSError) as error:
        return f"does not know the name {name}" if "No such master" in str(error) else _why(error)
    links = {(replica["ip"], replica["port"]): replica["master-link-status"] == "ok" for replica in replicas}
    return _Report(epoch=state["config-epoch"], primary=primary, replicas=links, has_quorum=has_quorum)


async def _has_quorum(sentinel: Redis, name: str) -> bool:
    try:
        await ask_sentinel(sentinel, name, "CKQUORUM")
    except ResponseError as error:
        if "NOQUORUM" not in str(error):
            raise
        return False
    return True


def _why(error: Exception) -> str:
    """Return why Redis cannot be used; the message of the error may contain an address."""
    return _WHY.get(reason_of(error), f"cannot be used ({name_of(error)})")


async def _examine(redis: Redis) -> RedisHealth:
    round_trip = await _round_trip(redis)
    info: Mapping[str, Any] = await _if_allowed(redis.info) or {}
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info.get('redis_version')}"
    version = tuple(int(part) for part in str(info.get("redis_version")).split(".") if part.isdigit())
    config = await _if_allowed(lambda: redis.config_get("save", "min-replicas-to-write")) if info else None
    return RedisHealth(
        name=name if info else None,
        version=version if info else None,
        is_replica=info["role"] == "slave" if info else None,
        eviction=info.get("maxmemory_policy"),
        persistence=_persistence(info, config) if info else None,
        round_trip=timedelta(seconds=round_trip),
        ahead=await _ahead(redis),
        refused=await _refused(redis),
        min_replicas=int(config["min-replicas-to-write"]) if config else None,
    )


async def _round_trip(redis: Redis) -> float:
    """Return the median of some round trips, in seconds, without the first, which connects."""
    await _ask(redis, "PING")
    took = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        await _ask(redis, "PING")
        took.append(time.perf_counter() - began)
    return sorted(took)[_PINGS // 2]


def _persistence(info: Mapping[str, Any], config: Mapping[str, str] | None) -> tuple[str, ...] | None:
    if info.get("aof_enabled"):
        return ("appendonly",)
    if config is None:
        return None
    return ("save",) if config.get("save") else ()


async def _ahead(redis: Redis) -> timedelta:
    before = time.time()
    seconds, microseconds = await _ask(redis, "TIME")
    here = (before + time.time()) / 2
    return timedelta(seconds=int(seconds) + int(microseconds) / 1e6 - here)


async def _refused(redis: Redis) -> tuple[str, ...]:
    needed: Mapping[str, Callable[[], Awaitable[Any]]] = {
        "scripts (EVALSHA, SCRIPT LOAD) on keys of pv:*": lambda: _run_script(redis),
        f"PUBLISH to {CHANNEL}": lambda: _ask(redis, "PUBLISH", CHANNEL, _NO_ID),
    }
    return tuple([name for name, ask in needed.items() if not await _is_allowed(ask)])


async def _run_script(redis: Redis) -> None:
    try:
        await _ask(redis, "EVALSHA", READ.sha, 1, _UNUSED_KEY, "")
    except NoScriptError:
        await _ask(redis, "SCRIPT LOAD", READ.source)
        await _ask(redis, "EVALSHA", READ.sha, 1, _UNUSED_KEY, "")


def _ask(redis: Redis, *command: str | bytes | int) -> Awaitable[Any]:
    reply: Awaitable[Any] = redis.execute_command(*command)  # type: ignore[no-untyped-call] # the library has no types here
    return reply


async def _is_allowed(ask: Callable[[], Awaitable[Any]]) -> bool:
    try:
        await ask()
    except RedisError as error:
        reason = reason_of(error)
        if reason not in {StoreFailure.ACCESS_DENIED, StoreFailure.REPLICA}:
            raise
        return reason is StoreFailure.REPLICA  # which has its own line
    return True


async def _if_allowed(ask: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
    """Return a reply, or none where the user may not ask."""
    try:
        return await ask()
    except NoPermissionError:
        return None
