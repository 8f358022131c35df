"""Runs Lua scripts in Redis: those that wait at the same moment share one write on one connection."""

import asyncio
import hashlib
import re
import select
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol

import hiredis
from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.store.failures import ConnectionLost, FailureLog, code_of, did_not_run, reason_of
from app.store.fields import CallField, PhoneField, RecordField
from app.verification.errors import StoreUnavailable

Argument = str | bytes | int
Waited = Callable[[str, float], None]
"""Called with the name of a script and how long its caller waited, in seconds, in the caller's own task."""

_MOST_AT_ONCE = 256  # commands in one write: bounds how much a slow reply delays
_PROBED_EVERY = 1.0  # seconds
_SHARED = ("common", "webhooks/stream", "verification/record", "verification/log", "limits/window")
_FIELDS = {**RecordField.__members__, **CallField.__members__, **PhoneField.__members__}
_FIELD_NAME = re.compile(rf"\b({'|'.join(_FIELDS)})\b")


class RoundTrip(Protocol):
    """Called after each write and its replies."""

    def __call__(self, seconds: float, *, failed: bool) -> None:
        """Record it; must not wait or raise."""


class Script:
    """A Lua script, ``app/store/lua/<feature>/<name>.lua``, behind the file that it stands ``after``, if any.

    Of the shared files it gets the definitions that it uses, since Lua makes each of them anew with every run. Names of
    fields are replaced by their letters: Lua 5.1 has no constants, and as locals they make a check 5 % slower.

    Redis refuses a script with a ``#!lua`` line, before it runs any of it, on a replica, and when it may not write or
    has no memory left. Without that line a script that only reads would answer from a replica's old data. A file that
    only reads, frees memory or moves what is stored begins with ``#!lua flags=allow-oom``: it runs on a full Redis too.
    """

    def __init__(self, feature: str, name: str, *, after: str | None = None) -> None:
        self.name = f"{feature}.{name}"
        own = _read(f"{feature}/{name}")
        flags, own = own.split("\n", 1) if own.startswith("#!") else ("#!lua", own)
        body = _without_comments(_read(f"{feature}/{after}") + own if after else own)
        for definition in reversed(_shared_definitions()):  # each uses only those before it
            if re.search(rf"\b{definition[1]}\b", body):
                body = definition[0] + body
        self.source = _FIELD_NAME.sub(lambda found: f"'{_FIELDS[found[0]]}'", f"{flags}\n{body}")
        # The name that Redis itself gives a script; no security rests on it.
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


def _read(file: str) -> str:
    return (resources.files("app.store") / "lua" / f"{file}.lua").read_text(encoding="utf-8")


def _without_comments(lua: str) -> str:
    return re.sub(r"^ *--.*\n", "", lua, flags=re.MULTILINE)


@cache
def _shared_definitions() -> Sequence[re.Match[str]]:
    """Return the top-level definitions of the shared files: their text, and as group 1 their names."""
    shared = _without_comments("".join(map(_read, _SHARED)))
    return [*re.finditer(r"^local (?:function )?(\w+).*?(?=^local |\Z)", shared, re.MULTILINE | re.DOTALL)]


PROBE = Script("probe", "probe")
_PROBE_KEY, _PROBE_KEPT_MS = "pv:{probe}", 10_000


@dataclass(slots=True, eq=False)
class _Run:
    """A command to run, as its bytes; the result of the future is its reply, or the error."""

    script: Script
    command: bytes
    reply: asyncio.Future[Any]

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
        self._connection: _Connection | None = None
        self._probe: asyncio.Future[Any] | None = None
        self._probe_again_at = 0.0
        self._log_failures = FailureLog()

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
        """Run a script and return its reply.

        Raises:
            StoreUnavailable: Redis was not reached, did not answer in time, or refused; the script may have run.

        """
        began = time.perf_counter()
        try:
            return await _result(self._submit(script, keys, arguments))
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
        command = pack_command(("EVALSHA", script.sha, len(keys), *keys, *arguments))  # type: ignore[arg-type] # its stub means a tuple of any length
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append(_Run(script, command, reply))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        return reply

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
        try:
            if self._connection is None or not self._connection.is_clean():
                await self._connect()
            assert self._connection is not None  # noqa: S101 - it was just connected
            if refused := await self._connection.send(batch):
                if not all(code_of(error) == "NOSCRIPT" for _, error in refused):
                    await self._connect()
                again = [run for run, _ in refused]
                for run, error in await self._connection.send(again, load={run.script for run in again}):
                    run.answer(error)
        except (Exception, asyncio.CancelledError):
            await self._disconnect()  # a reply may still arrive, and must not be taken for another's
            raise

    async def _connect(self) -> None:
        await self._disconnect()
        connection: AbstractConnection = await self._redis.connection_pool.get_connection()  # type: ignore[no-untyped-call] # the library's own
        self._connection = _Connection(connection)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await connection.library.disconnect(nowait=True)
            await self._redis.connection_pool.release(connection.library)


class _Connection(asyncio.Protocol):
    """A connection that the library has opened (address, TLS, user, database), with our own reader.

    The library packs commands in Python, and sets a time-out in a task of its own for each write and each reply.
    """

    def __init__(self, library: AbstractConnection) -> None:
        self.library = library
        writer = library._writer  # noqa: SLF001 - the library has no public way to the transport
        assert writer is not None  # noqa: S101 - the pool has connected it
        self._transport = writer.transport
        self._library_protocol = self._transport.get_protocol()
        self._transport.set_protocol(self)
        self._input = select.poll()
        self._input.register(self._transport.get_extra_info("socket"), select.POLLIN)
        self._reader = hiredis.Reader(replyError=ResponseError)
        self._unanswered: deque[_Run] = deque()
        self._refused: list[tuple[_Run, ResponseError]] = []
        self._done: asyncio.Future[list[tuple[_Run, ResponseError]]] | None = None

    def is_clean(self) -> bool:
        """Return whether the idle connection is open, and nothing unread has arrived: the system is asked."""
        return not self._transport.is_closing() and not self._input.poll(0)

    async def send(
        self, runs: Sequence[_Run], *, load: Collection[Script] = ()
    ) -> Sequence[tuple[_Run, ResponseError]]:
        """Load scripts and run others, and set their replies; return those that Redis did not run, with its errors.

        Raises ConnectionLost.
        """
        loop = asyncio.get_running_loop()
        loads = [(script, pack_command(("SCRIPT", "LOAD", script.source))) for script in load]  # type: ignore[arg-type] # as above
        loading = [_Run(script, command, loop.create_future()) for script, command in loads]
        self._refused, self._done = [], loop.create_future()
        self._unanswered.extend((*loading, *runs))
        self._transport.write(b"".join([run.command for run in self._unanswered]))
        refused = await self._done
        for run in loading:
            if run.reply.done() and isinstance(error := run.reply.result(), Exception):
                raise error
        return refused

    def data_received(self, data: bytes) -> None:
        """Set the replies. The writer continues before the callers, so that an error is logged before it is raised."""
        self._reader.feed(data)
        answers = []
        while (reply := self._reader.gets()) is not False:
            if not self._unanswered:  # an unsolicited reply: those after it could be mismatched
                self._transport.abort()
                return
            run = self._unanswered.popleft()
            if isinstance(reply, ResponseError) and did_not_run(reply):
                self._refused.append((run, reply))
            else:
                answers.append((run, reply))
        if not self._unanswered and self._done and not self._done.done():
            self._done.set_result(self._refused)
        for run, reply in answers:
            run.answer(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the library's side, and fail the write in progress."""
        self._library_protocol.connection_lost(exc)
        if self._done and not self._done.done():
            self._done.set_exception(ConnectionLost())


async def _result(reply: asyncio.Future[Any]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
    result = await reply
    if isinstance(result, Exception):
        raise StoreUnavailable(reason_of(result)) from result
    return result
