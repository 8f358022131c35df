"""The checks of ``doctor``: each is a function that returns what it found, and changes nothing."""

from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import TypeVar

from redis.exceptions import NoPermissionError

from app.store.cluster import Cluster
from app.store.connection import AnyRedis
from app.store.health import RedisHealth, RedisUnreachable, count_confirming_replicas, examine
from app.store.layout import PREFIX

_OLDEST_REDIS = (7,)  # the first with PEXPIRETIME
_SLOW = timedelta(milliseconds=5)  # a check is one round trip, and a start two, or four on a cluster
_CLOCK_DRIFTS = timedelta(seconds=2)
_CLOCK_IS_WRONG = timedelta(minutes=1)  # from here on, tokens are refused that are still good
_RIGHTS = "Give its user the rights of docs/operations.md, section Redis."
_NOT_OF_REPLICAS = {"redis role", "redis round trip"}


_T = TypeVar("_T")


class Result(StrEnum):
    """The result of a check: it works, it works but not as it should, or it does not work."""

    FINE = "ok"
    DOUBTFUL = "warning"
    WRONG = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found (``message``), and what to do about it; neither contains a secret."""

    result: Result
    check: str
    message: str
    advice: str = ""


fine = partial(Finding, Result.FINE)
doubtful = partial(Finding, Result.DOUBTFUL)
wrong = partial(Finding, Result.WRONG)


async def check_redis(redis: AnyRedis, *, timeout: float, prefix: str = PREFIX) -> list[Finding]:  # noqa: ASYNC109 - of each wait, not of all
    """Check how Redis is reached and configured, unless it is a cluster. ``timeout`` bounds the waits, in seconds."""
    if isinstance(redis, Cluster):
        return []
    try:
        health = await examine(redis, timeout=timeout, prefix=prefix)
    except RedisUnreachable as error:
        if _lacks_a_right(error):
            return [wrong("redis", "Redis refuses to let the user of REDIS_URL choose its database", _RIGHTS)]
        advice = "Check REDIS_URL, that Redis runs, and that this machine may connect to it."
        return [wrong("redis", f"Redis {error}", advice)]
    return list(grade_redis(health))


def grade_redis(health: RedisHealth) -> Iterator[Finding]:
    """Return the findings about a Redis that is reached."""
    yield from _grade_configuration(health)
    yield from _grade_connection(health)


def _lacks_a_right(error: BaseException | None) -> bool:
    """Return whether a missing right is among the causes: the library wraps errors of the connection."""
    while error and not isinstance(error, NoPermissionError):
        error = error.__cause__ or error.__context__
    return error is not None


def _grade_configuration(health: RedisHealth) -> Iterator[Finding]:
    if health.version is None:
        advice = "Allow INFO, or check the version yourself."
        yield doubtful("redis", "reached; its user may not ask for its version (INFO)", advice)
    elif health.version < _OLDEST_REDIS:
        yield wrong("redis", f"{health.name} is too old", "Use Redis 7 or newer, or Valkey.")
    else:
        yield fine("redis", f"{health.name} is reached")

    if health.is_replica is None:
        yield doubtful("redis role", "unknown", "Make sure that REDIS_URL names the primary.")
    elif health.is_replica:
        yield wrong("redis role", "it is a replica, which takes no writes", "Let REDIS_URL name the primary.")
    else:
        yield fine("redis role", "takes writes")

    if health.eviction is None:
        yield doubtful("redis eviction", "unknown", "Make sure that maxmemory-policy is noeviction.")
    elif health.eviction != "noeviction":
        message = f"maxmemory-policy is {health.eviction}: when memory is full, limits and codes are forgotten"
        yield wrong("redis eviction", message, "Set maxmemory-policy noeviction.")
    else:
        yield fine("redis eviction", "maxmemory-policy is noeviction")

    if health.persistence is None:
        yield doubtful("redis persistence", "unknown", "Make sure that appendonly, or save, is on.")
    elif not health.persistence:
        message = "off: with a restart of Redis pending codes, limits and undelivered events are lost"
        yield doubtful("redis persistence", message, "Set appendonly yes, or save, unless that is meant.")
    else:
        yield fine("redis persistence", f"on ({', '.join(health.persistence)})")


def _grade_connection(health: RedisHealth) -> Iterator[Finding]:
    milliseconds = f"{health.round_trip / timedelta(milliseconds=1):.2f} ms"
    if health.round_trip > _SLOW:
        yield doubtful("redis round trip", milliseconds, "Bring Redis closer: every request waits for it.")
    else:
        yield fine("redis round trip", milliseconds)

    if health.refused:
        message = f"the user of REDIS_URL may not use: {'; '.join(health.refused)}"
        yield wrong("redis permissions", message, _RIGHTS)
    else:
        yield fine("redis permissions", "scripts run, and changes can be published")

    seconds = health.ahead.total_seconds()
    message = f"Redis is {abs(seconds):.2f} s {'ahead of' if seconds > 0 else 'behind'} this machine"
    if abs(health.ahead) > _CLOCK_DRIFTS:
        grade = wrong if abs(health.ahead) > _CLOCK_IS_WRONG else doubtful
        yield grade("clock", message, "Have both keep time by NTP (chrony, systemd-timesyncd).")
    else:
        yield fine("clock", message)


async def check_waiting(redis: AnyRedis, *, replicas: int, timeout: float) -> list[Finding]:  # noqa: ASYNC109 - as above
    """Check that so many replicas can be waited for; nothing if none are."""
    if not replicas:
        return []
    found = await or_why(count_confirming_replicas(redis, wanted=replicas, timeout=timeout))
    if isinstance(found, str):
        return [wrong("redis wait", f"Redis {found} (WAIT)", "Give its user +wait (docs/operations.md).")]
    message = f"{found} replicas of each primary confirm, and REDIS_WAIT_REPLICAS is {replicas}"
    if found < replicas:
        return [wrong("redis wait", f"{message}: starts and checks are refused", "Add replicas, or wait for fewer.")]
    if found == replicas:
        return [doubtful("redis wait", f"{message}: while one is down all are refused", "Add a replica.")]
    return [fine("redis wait", message)]


async def or_why(examination: Awaitable[_T]) -> _T | str:
    """Return the result of an examination, or why there is none."""
    try:
        return await examination
    except RedisUnreachable as error:
        return str(error)


def grade_replica(address: str, state: RedisHealth | str, *, is_linked: bool, advice: str) -> Iterator[Finding]:
    """Return the findings about a replica: its health, or why it is not known. ``advice`` is for one that is gone."""
    if isinstance(state, str) or not is_linked:
        why = state if isinstance(state, str) else "is not connected to the primary"
        yield doubtful("redis replicas", f"{address} {why}", advice)
        return
    grades = [*grade_redis(state), grade_min_replicas(state.min_replicas)]
    faults = [one for one in grades if one.result is not Result.FINE and one.check not in _NOT_OF_REPLICAS]
    for fault in faults:
        yield replace(fault, message=f"replica {address}: {fault.message}")
    if not faults:
        yield fine("redis replicas", f"{address} can take over")


def grade_min_replicas(count: int | None) -> Finding:
    """Return the finding about a node's ``min-replicas-to-write``."""
    if count is None:
        return doubtful("redis min-replicas", "unknown", "Make sure that min-replicas-to-write is at least 1.")
    if not count:
        message = "min-replicas-to-write is 0: a primary that is cut off keeps taking writes, which are lost"
        return doubtful("redis min-replicas", message, "Set min-replicas-to-write 1 on every node.")
    return fine("redis min-replicas", f"min-replicas-to-write is {count}")
