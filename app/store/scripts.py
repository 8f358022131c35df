"""Runs Lua scripts in Redis: those that wait at the same moment share one write on one connection."""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Protocol

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.store.connection import Command, Connection, Errors
from app.store.failures import FailureLog, code_if_not_run, reason_of
from app.store.layout import LETTERS
from app.verification.errors import StoreUnavailable

Argument = str | bytes | int
Waited = Callable[[str, float], None]
"""Called with the name of a script and how long its caller waited, in seconds, in the caller's own task."""

_MOST_AT_ONCE = 256  # commands in one write: bounds how much a slow reply delays
_PROBED_EVERY = 1.0  # seconds
_SHARED = ("common", "webhooks/outbox", "verification/record", "verification/log", "limits/window")
_FIELD_NAME = re.compile(rf"\b({'|'.join(LETTERS)})\b")


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
        self.source = _FIELD_NAME.sub(lambda found: f"'{LETTERS[found[0]]}'", f"{flags}\n{body}")
        # The name that Redis itself gives a script; no security rests on it.
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self.load = _pack("SCRIPT", "LOAD", self.source)


def _pack(*words: Argument) -> bytes:
    packed: bytes = pack_command(words)  # type: ignore[arg-type] # its stub means a tuple of any length
    return packed


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
        self._waiting: list[Command] = []
        self._is_writing = False
        self._began = self._deadline = 0.0  # of the write in progress
        self._alarm: asyncio.TimerHandle | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
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
        command = Command(_pack("EVALSHA", script.sha, len(keys), *keys, *arguments), script.load)
        self._waiting.append(command)
        if not self._is_writing:
            self._is_writing = True
            asyncio.get_running_loop().call_soon(self._write_next)
        return command.reply

    def _write_next(self) -> None:
        """Write what waits: at once to a clean connection, else once there is another one."""
        batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
        self._is_writing = bool(batch)
        if not batch:
            return
        loop = asyncio.get_running_loop()
        self._began, self._deadline = time.perf_counter(), loop.time() + self.timeout
        if self._connection and self._connection.is_clean():
            self._connection.send(batch, self._end)
            self._alarm = loop.call_at(self._deadline, self._connection.fail, TimeoutError())
        else:
            self._recovery = loop.create_task(self._recover(batch, []))

    def _end(self, errors: Errors) -> None:
        """End a write, after a recovery where there are errors."""
        if self._alarm:
            self._alarm.cancel()
        if errors:
            self._recovery = asyncio.get_running_loop().create_task(self._recover([], errors))
        else:
            self._finish(errors)

    async def _recover(self, unwritten: Sequence[Command], errors: Errors) -> None:
        """Write on a new connection what is not written yet, and once more what Redis did not run."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self._deadline):
                if unwritten:
                    await self._connect()
                    errors = await self._send(unwritten)
                refused = {it: code for it, error in errors if (code := code_if_not_run(error))}
                unwritten = list(refused)
                errors = [(command, error) for command, error in errors if command not in refused]
                if {*refused.values()} - {"NOSCRIPT"}:
                    await self._connect()
                if refused:
                    errors += await self._send(unwritten, load={command.load for command in unwritten})
        except asyncio.CancelledError:
            self._is_writing = False
            await self._disconnect()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, no caller may wait for ever
            if loop.is_closed():  # after a second SIGINT: nobody waits any more
                return
            await self._disconnect()  # a reply may still arrive, and must not be taken for another's
            errors += [(command, error) for command in unwritten if not command.reply.done()]
        self._finish(errors)

    async def _send(self, commands: Sequence[Command], *, load: Collection[bytes] = ()) -> Errors:
        """Load scripts, then run commands; return their errors. Raise that of a script that cannot be loaded."""
        assert self._connection is not None  # noqa: S101 - it was just connected
        loads = [Command(data) for data in load]
        done: asyncio.Future[Errors] = asyncio.get_running_loop().create_future()
        # A time-out may have come just before.
        self._connection.send([*loads, *commands], lambda errors: None if done.done() else done.set_result(errors))
        errors = await done
        for command, error in errors:
            if command in loads:
                raise error
        return errors

    def _finish(self, errors: Errors) -> None:
        """Log errors before the callers continue, then write what has gathered, with what the callers add at once."""
        if errors:
            last = errors[-1][1]
            if isinstance(last, TimeoutError | RedisTimeoutError):  # no caller waits for a hanging Redis twice
                errors += [(command, last) for command in self._waiting]
                self._waiting = []
            self._log_failures([error for command, error in errors if not command.reply.cancelled()])
            for command, error in errors:
                command.answer(error)
        if self._round_trip:
            self._round_trip(time.perf_counter() - self._began, failed=bool(errors))
        asyncio.get_running_loop().call_soon(self._write_next)

    async def _connect(self) -> None:
        await self._disconnect()
        connection: AbstractConnection = await self._redis.connection_pool.get_connection()  # type: ignore[no-untyped-call] # the library's own
        self._connection = Connection(connection)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.abandon()
            await connection.library.disconnect(nowait=True)
            await self._redis.connection_pool.release(connection.library)


async def _result(reply: asyncio.Future[Any]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
    result = await reply
    if isinstance(result, Exception):
        raise StoreUnavailable(reason_of(result)) from result
    return result
