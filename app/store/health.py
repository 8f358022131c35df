"""Examines the Redis of the service without changing anything in it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from app.store.cluster import Cluster, Topology
from app.store.connection import AnyRedis, nodes_of
from app.store.failures import name_of, reason_of
from app.store.layout import PREFIX, changes_channel, with_version
from app.store.sentinel import ask_sentinel
from app.store.verifications import READ
from app.verification.errors import StoreFailure

_UNUSED_KEY = "{000}:doctor"
_NO_ID = b"doctor"  # no verification has this id, so no listener is woken
_SAMPLES = 5
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

    ``version``: Valkey reports the Redis that it replaces. ``persistence`` lists what outlives a restart. ``ahead`` is
    how far its clock is ahead of this machine's. ``refused`` lists the rights that the user of REDIS_URL lacks.
    ``min_replicas`` is its ``min-replicas-to-write``. ``is_linked``: a replica is connected to its primary.
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
    is_linked: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SentinelReport:
    """What one Sentinel reports; ``replicas`` by address, with whether each is connected to the primary."""

    epoch: int
    primary: tuple[bytes, int]
    replicas: Mapping[tuple[str, int], bool]
    has_quorum: bool


async def examine(redis: Redis, *, timeout: float, prefix: str = PREFIX) -> RedisHealth:  # noqa: ASYNC109 - of all waits together
    """Examine Redis within ``timeout`` seconds, and the rights on keys with ``prefix``. Raises RedisUnreachable."""
    async with _reaching(timeout):
        return await _examine(redis, prefix)


async def examine_sentinel(sentinel: Redis, name: str, *, timeout: float) -> SentinelReport:  # noqa: ASYNC109 - as above
    """Ask a Sentinel about the primary of that name, within ``timeout`` seconds. Raises RedisUnreachable."""
    async with _reaching(timeout):
        primary, state, replicas = await ask_sentinel(sentinel, name, "GET-MASTER-ADDR-BY-NAME", "MASTER", "SLAVES")
        try:
            has_quorum = bool(await ask_sentinel(sentinel, name, "CKQUORUM"))
        except ResponseError as error:
            if "NOQUORUM" not in str(error):
                raise
            has_quorum = False
    return SentinelReport(
        epoch=state["config-epoch"],
        primary=primary,
        replicas={(replica["ip"], replica["port"]): replica["master-link-status"] == "ok" for replica in replicas},
        has_quorum=has_quorum,
    )


async def count_confirming_replicas(redis: AnyRedis, *, wanted: int, timeout: float) -> int:  # noqa: ASYNC109 - as above
    """Return how many replicas answer ``WAIT``, of the primary that has the fewest. Raises RedisUnreachable."""
    async with _reaching(timeout):
        nodes = await nodes_of(redis)
        counts: list[int] = await asyncio.gather(*(_ask(node, "WAIT", wanted, int(timeout * 500)) for node in nodes))
    return min(counts)


async def examine_cluster(cluster: Cluster, *, timeout: float) -> Topology:  # noqa: ASYNC109 - as above
    """Return the topology of a cluster, asked for within ``timeout`` seconds. Raises RedisUnreachable."""
    async with _reaching(timeout):
        await cluster.refresh()
    return cluster.topology


@asynccontextmanager
async def _reaching(timeout: float) -> AsyncIterator[None]:  # noqa: ASYNC109 - as above
    """Raise RedisUnreachable in place of the errors of a Redis or a Sentinel that cannot be used."""
    try:
        async with asyncio.timeout(timeout):
            yield
    except (RedisError, OSError) as error:
        if "No such master with that name" in str(error):
            raise RedisUnreachable("does not know the name of the primary in REDIS_URL") from None
        if "cluster support disabled" in str(error):
            raise RedisUnreachable("is no node of a cluster") from None
        # The message of the error may contain an address.
        raise RedisUnreachable(_WHY.get(reason_of(error), f"cannot be used ({name_of(error)})")) from None


async def _examine(redis: Redis, prefix: str) -> RedisHealth:
    await _ask(redis, "PING")  # connects
    # The quickest sample says most of the network and least of a busy machine (RFC 5905, section 10).
    round_trip, ahead = min([await _sample_clock(redis) for _ in range(_SAMPLES)])
    info: Mapping[str, Any] = await _if_allowed(redis.info) or {}
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info.get('redis_version')}"
    version = tuple(int(part) for part in str(info.get("redis_version")).split(".") if part.isdigit())
    channel = changes_channel(prefix)
    needed: Mapping[str, Callable[[], Awaitable[Any]]] = {
        f"scripts (EVALSHA, SCRIPT LOAD) on keys of {prefix}*": lambda: _run_script(redis, prefix),
        f"PUBLISH to {channel}": lambda: _ask(redis, "PUBLISH", channel, _NO_ID),
    }
    config = await _if_allowed(lambda: redis.config_get("save", "min-replicas-to-write")) if info else None
    return RedisHealth(
        name=name if info else None,
        version=version if info else None,
        is_replica=info["role"] == "slave" if info else None,
        eviction=info.get("maxmemory_policy"),
        persistence=_persistence(info, config) if info else None,
        round_trip=timedelta(seconds=round_trip),
        ahead=timedelta(seconds=ahead),
        refused=tuple([right for right, ask in needed.items() if not await _is_allowed(ask)]),
        min_replicas=int(config["min-replicas-to-write"]) if config else None,
        is_linked=info.get("master_link_status") == "up" if info else None,
    )


async def _sample_clock(redis: Redis) -> tuple[float, float]:
    """Return how many seconds a round trip took, and how many the clock of Redis is ahead of this machine's."""
    began, here = time.perf_counter(), time.time()
    seconds, microseconds = await _ask(redis, "TIME")
    round_trip = time.perf_counter() - began
    return round_trip, int(seconds) + int(microseconds) / 1e6 - (here + round_trip / 2)


def _persistence(info: Mapping[str, Any], config: Mapping[str, str] | None) -> tuple[str, ...] | None:
    if info.get("aof_enabled"):
        return ("appendonly",)
    if config is None:
        return None
    return ("save",) if config.get("save") else ()


async def _run_script(redis: Redis, prefix: str) -> None:
    key = with_version(prefix) + _UNUSED_KEY
    try:
        await _ask(redis, "EVALSHA", READ.sha, 1, key, "")
    except NoScriptError:
        await _ask(redis, "SCRIPT LOAD", READ.source)
        await _ask(redis, "EVALSHA", READ.sha, 1, key, "")


def _ask(redis: Redis, *command: str | bytes | int) -> Awaitable[Any]:
    reply: Awaitable[Any] = redis.execute_command(*command)  # type: ignore[no-untyped-call] # the library has no types here
    return reply


async def _is_allowed(ask: Callable[[], Awaitable[Any]]) -> bool:
    try:
        await ask()
    except RedisError as error:
        reason = reason_of(error)
        if reason not in {StoreFailure.ACCESS_DENIED, StoreFailure.REPLICA, StoreFailure.CLUSTER}:
            raise
        return reason is not StoreFailure.ACCESS_DENIED  # a replica, or a node without the slot, has checked the right
    return True


async def _if_allowed(ask: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
    """Return a reply, or none where the user may not ask."""
    try:
        return await ask()
    except NoPermissionError:
        return None
