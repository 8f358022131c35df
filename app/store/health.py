"""How the Redis of the service is, asked without changing anything in it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, NoScriptError, RedisError

from app.store.event_stream import CHANNEL
from app.store.failures import name_of, reason_of
from app.store.verifications import READ
from app.verification.errors import StoreFailure

_PROBED_KEY = "pv:{000}:doctor"
_NOBODY = b"doctor"  # no verification has this id, so nobody who listens is woken
_PINGS = 5
_WHY = {
    StoreFailure.TIMEOUT: "does not answer in time",
    StoreFailure.ACCESS_DENIED: "refuses the user name or the password",
    StoreFailure.UNREACHABLE: "is not reached",
}


class RedisUnreachable(Exception):
    """Redis cannot be used at all; ``why`` ends a sentence that begins with its name, and holds no secret."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisHealth:
    """What Redis tells of itself; none where it may not be asked.

    ``version`` is that of the protocol that it speaks: a Valkey tells the Redis that it replaces. ``persistence`` names
    what outlives a restart. ``ahead`` is how far its clock is ahead of the one here. ``refused`` names what the user of
    REDIS_URL needs and may not do.
    """

    name: str | None
    version: tuple[int, ...] | None
    is_replica: bool | None
    eviction: str | None
    persistence: tuple[str, ...] | None
    round_trip: timedelta
    ahead: timedelta
    refused: tuple[str, ...]


async def examine(redis: Redis, *, within: float) -> RedisHealth:
    """Ask Redis, giving it ``within`` seconds for everything together.

    Raises:
        RedisUnreachable: it does not answer, or lets nobody in.

    """
    try:
        async with asyncio.timeout(within):
            return await _examine(redis)
    except (RedisError, OSError) as error:
        raise RedisUnreachable(_why(error)) from None


def _why(error: Exception) -> str:
    """Say what an error means. What it says itself may hold an address."""
    return _WHY.get(reason_of(error), f"cannot be used ({name_of(error)})")


async def _examine(redis: Redis) -> RedisHealth:
    round_trip = await _round_trip(redis)
    info: Mapping[str, Any] | None = await _allowed(redis.info)
    version = str(info["redis_version"]) if info else None
    return RedisHealth(
        name=_name(info) if info else None,
        version=tuple(int(part) for part in version.split(".") if part.isdigit()) if version else None,
        is_replica=info.get("role") == "slave" if info else None,
        eviction=str(info["maxmemory_policy"]) if info and "maxmemory_policy" in info else None,
        persistence=await _persistence(redis, info) if info else None,
        round_trip=timedelta(seconds=round_trip),
        ahead=await _ahead(redis),
        refused=await _refused(redis),
    )


async def _round_trip(redis: Redis) -> float:
    """Return the median of a few, in seconds; the first one, which connects, does not count."""
    await _ask(redis, "PING")
    took = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        await _ask(redis, "PING")
        took.append(time.perf_counter() - began)
    return sorted(took)[_PINGS // 2]


def _name(info: Mapping[str, Any]) -> str:
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


async def _persistence(redis: Redis, info: Mapping[str, Any]) -> tuple[str, ...] | None:
    if info.get("aof_enabled"):
        return ("appendonly",)
    config = await _allowed(lambda: redis.config_get("save"))
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
        "scripts (EVALSHA, SCRIPT LOAD) on keys of pv:*": lambda: _run_probe(redis),
        f"PUBLISH to {CHANNEL}": lambda: _ask(redis, "PUBLISH", CHANNEL, _NOBODY),
    }
    return tuple([name for name, ask in needed.items() if not await _is_allowed(ask)])


async def _run_probe(redis: Redis) -> None:
    try:
        await _ask(redis, "EVALSHA", READ.sha, 1, _PROBED_KEY, "")
    except NoScriptError:
        await _ask(redis, "SCRIPT LOAD", READ.source)
        await _ask(redis, "EVALSHA", READ.sha, 1, _PROBED_KEY, "")


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


async def _allowed(ask: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
    """Return a reply, or none where the user may not ask."""
    try:
        return await ask()
    except NoPermissionError:
        return None
