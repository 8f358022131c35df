"""Runs Lua scripts in Redis: those that wait at the same moment share one write on one connection."""

import asyncio
import hashlib
import math
import re
import select
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, BusyLoadingError, NoScriptError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.store.failures import ConnectionLost, FailureLog, did_not_run, reason_of
from app.store.fields import CallField, PhoneField, RecordField
from app.verification.errors import StoreUnavailable

Argument = str | bytes | int
Waited = Callable[[str, float], None]
"""Called with the name of a script and how long its caller waited, in seconds, in the caller's own task."""

_MOST_AT_ONCE = 256  # commands in one write: bounds how much a slow reply delays
_PROBED_EVERY = 1.0  # seconds
_FIELDS = {**RecordField.__members__, **CallField.__members__, **PhoneField.__members__}
_FIELD_NAME = re.compile(rf"\b({'|'.join(_FIELDS)})\b")


class RoundTrip(Protocol):
    """Called after each write and its replies."""

    def __call__(self, seconds: float, *, failed: bool) -> None:
        """Record it; must not wait or raise."""


class Script:
    """A Lua script, ``app/store/lua/<feature>/<name>.lua``, behind ``common.lua`` and those that it stands ``after``.

    Names of fields are replaced by their letters: Lua 5.1 has no constants, and as locals they make a check 5 % slower.

    Redis refuses a script with a ``#!lua`` line, before it runs any of it, on a replica, and when it may not write or
    has no memory left. Without that line a script that only reads would answer from a replica's old data. A file that
    only reads, frees memory or moves what is stored begins with ``#!lua flags=allow-oom``: it runs on a full Redis too.
    """

    def __init__(self, feature: str, name: str, *, after: Sequence[str] = ()) -> None:
        self.name = f"{feature}.{name}"
        lua = resources.files("app.store") / "lua"
        files = [lua / f"{file}.lua" for file in ("common", *after, self.name.replace(".", "/"))]
        *shared, own = (file.read_text(encoding="utf-8") for file in files)
        flags, own = own.split("\n", 1) if own.startswith("#!") else ("#!lua", own)
        self.source = _FIELD_NAME.sub(lambda found: f"'{_FIELDS[found[0]]}'", "\n".join([flags, *shared, own]))
        # The name that Redis itself gives a script; no security rests on it.
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


PROBE = Script("probe", "probe")
_PROBE_KEY, _PROBE_KEPT_MS = "pv:{probe}", 10_000


@dataclass(frozen=True, slots=True)
class _Run:
    """A script to run; the result of the future is its reply, or the error."""

    script: Script
    command: Sequence[Argument]
    reply: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def answer(self, reply: object) -> None:
        """Set the reply, unless the caller was cancelled or has one."""
        if not self.reply.done():
            self.reply.set_result(reply)


class ScriptRunner:
    """Runs scripts on one Redis, each in one round trip and within ``timeout`` seconds.

    While a write is under way, further commands gather and share the next one, and so do those awaited together
    (``asyncio.gather``): under load this halves the cost of a command, and without load nothing waits.

    A command whose reply was lost may have run, so it is never repeated. One that Redis says it did not run is sent
    once more, within the same time-out: on a new connection, which resolves the address anew and so finds the primary
    after a failover, or, if Redis did not know the script, after loading it.
    """

    def __init__(
        self, redis: Redis, *, timeout: float, round_trip: RoundTrip | None = None, waited: Waited | None = None
    ) -> None:
        self._redis = redis
        self._round_trip = round_trip
        self._waited = waited
        self.timeout = timeout
        self._waiting: list[_Run] = []
        self._writer: asyncio.Task[None] | None = None
        self._probe: asyncio.Future[Any] | None = None
        self._probe_again_at = 0.0
        self._log_failures = FailureLog()

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
        """Run a script and return its reply.

        Raises:
            StoreUnavailable: Redis was not reached, did not answer in time, or refused; the script may have run.

        """
        (reply,) = await self.run_each(script, [(keys, arguments)])
        return reply

    async def run_each(self, script: Script, runs: Iterable[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Run a script with several keys and arguments, all in one round trip. Raises as ``run`` does."""
        began = time.perf_counter()
        replies = [self._submit(script, keys, arguments) for keys, arguments in runs]
        try:
            return [await _result(reply) for reply in replies]
        finally:
            if self._waited:
                self._waited(script.name, time.perf_counter() - began)

    async def ping(self) -> None:
        """Write and read a key, at most once a second; callers in between get the same answer."""
        now = time.monotonic()
        if self._probe is None or (self._probe.done() and now >= self._probe_again_at):
            self._probe = self._submit(PROBE, [_PROBE_KEY], [_PROBE_KEPT_MS])
            self._probe_again_at = now + _PROBED_EVERY
        await _result(asyncio.shield(self._probe))

    async def gauges(self) -> Mapping[str, float]:
        """Return whether Redis takes and returns what is written, for the metrics."""
        try:
            await self.ping()
        except StoreUnavailable:
            return {"store_up": 0}
        return {"store_up": 1}

    def _submit(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> asyncio.Future[Any]:
        run = _Run(script, ("EVALSHA", script.sha, len(keys), *keys, *arguments))
        self._waiting.append(run)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        return run.reply

    async def _write_all(self) -> None:
        """Write the queue until it is empty."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
                began = time.perf_counter()
                try:
                    async with asyncio.timeout(self.timeout):
                        await self._write(batch)
                except Exception as error:  # noqa: BLE001 - whatever it is, no caller may wait for ever
                    if isinstance(error, TimeoutError | RedisTimeoutError):
                        # Those that gathered meanwhile fail as well: no caller waits for a hanging Redis twice.
                        batch, self._waiting = batch + self._waiting, []
                    for run in batch:
                        run.answer(error)
                replies = [run.reply.result() for run in batch if not run.reply.cancelled()]
                errors = [reply for reply in replies if isinstance(reply, Exception)]
                if self._round_trip:
                    self._round_trip(time.perf_counter() - began, failed=bool(errors))
                self._log_failures(errors)
        finally:
            self._writer = None

    async def _write(self, batch: Sequence[_Run]) -> None:
        """Run scripts on one connection. If this raises, those without a reply may have run."""
        pool = self._redis.connection_pool
        connection: AbstractConnection = await pool.get_connection()  # type: ignore[no-untyped-call] # the library's own
        try:
            if _has_input(connection):
                await _reconnect(connection)
            refused = await _exchange(connection, batch)
            if refused:
                if not all(isinstance(error, NoScriptError) for _, error in refused):
                    await _reconnect(connection)
                await _load(connection, {run.script for run, _ in refused})
                for run, error in await _exchange(connection, [run for run, _ in refused]):
                    run.answer(error)
        except BaseException:
            # A reply may still come, which no later command must read.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)


async def _exchange(connection: AbstractConnection, runs: Sequence[_Run]) -> list[tuple[_Run, RedisError]]:
    """Send scripts and set their replies; return those that Redis did not run, with its errors."""
    refused = []
    try:
        await connection.send_packed_command(connection.pack_commands([run.command for run in runs]))
        for run in runs:
            reply = await _read(connection)
            if isinstance(reply, RedisError) and did_not_run(reply):
                refused.append((run, reply))
            else:
                run.answer(reply)
    except RedisConnectionError as error:
        raise ConnectionLost from error
    return refused


async def _load(connection: AbstractConnection, scripts: Collection[Script]) -> None:
    loads = [("SCRIPT LOAD", script.source) for script in scripts]
    await connection.send_packed_command(connection.pack_commands(loads))
    for _ in loads:
        if isinstance(reply := await _read(connection), Exception):
            raise reply


async def _read(connection: AbstractConnection) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
    """Return one reply, or the error that it is. The time-out is that of the whole write."""
    try:
        return await connection.read_response(timeout=math.inf, disconnect_on_error=False)
    except (ResponseError, BusyLoadingError, AuthenticationError) as error:
        return error


async def _reconnect(connection: AbstractConnection) -> None:
    await connection.disconnect(nowait=True)
    await connection.connect()  # type: ignore[no-untyped-call] # the library's own


def _has_input(connection: AbstractConnection) -> bool:
    """Return whether an idle connection was closed by Redis, or has a reply that no caller waits for.

    The pool checks what asyncio has read so far; the system may have more.
    """
    writer = connection._writer  # noqa: SLF001 - the library has no public way to the socket
    assert writer is not None  # noqa: S101 - the pool has connected it
    poll = select.poll()
    poll.register(writer.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))


async def _result(reply: asyncio.Future[Any]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
    result = await reply
    if isinstance(result, Exception):
        raise StoreUnavailable(reason_of(result)) from result
    return result
