"""Sends commands to one Redis: those that wait at the same moment share one write on one connection."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.store.connection import Command, Connection, Errors
from app.store.failures import FailureLog, code_if_not_run

_MOST_AT_ONCE = 256  # commands in one write: bounds how much a slow reply delays


PROBE_KEY = "{probe}"
ONLY_NODE = ""  # its name in the results of a probe


OpenConnection = Callable[[AbstractConnection], Connection]


class RoundTrip(Protocol):
    """Called after each write and its replies."""

    def __call__(self, seconds: float, *, failed: bool) -> None:
        """Record it; must not wait or raise."""


class NodeRunner:
    """Sends commands to one Redis, each in one round trip and within ``timeout`` seconds.

    While a write is under way, further commands gather and share the next one, and so do those awaited together
    (``asyncio.gather``): under load this halves the cost of a command, and without load nothing waits.

    A command whose reply was lost may have run, so it is never repeated. One that Redis says it did not run is sent
    once more, within the same time-out: on a new connection, which resolves the address anew and so finds the primary
    after a failover, or, if Redis did not know the script, after loading it.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        timeout: float,
        log_failures: FailureLog,
        round_trip: RoundTrip | None,
        open_connection: OpenConnection = Connection,
    ) -> None:
        self._pool = redis.connection_pool
        self._open_connection = open_connection
        self._timeout = timeout
        self._log_failures = log_failures
        self._round_trip = round_trip
        self._waiting: list[Command] = []
        self._is_writing = False
        self._began = self._deadline = 0.0  # of the write in progress
        self._alarm: asyncio.TimerHandle | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._connection: Connection | None = None

    def slot_of(self, key: str) -> int:  # noqa: ARG002 - on a cluster it has one
        """Return 0: one server has all keys in one place."""
        return 0

    def probe_keys(self) -> Mapping[str, str]:
        """Return a key to probe each node that takes writes, by its address, or ``ONLY_NODE``."""
        return {ONLY_NODE: PROBE_KEY}

    async def aclose(self) -> None:
        """Stop connecting; a command that waits for it gets no reply. Connections are closed with their pool."""
        if self._recovery:
            self._recovery.cancel()
            await asyncio.wait({self._recovery})

    def submit(self, command: Command) -> None:
        """Send a command with the next write; its ``reply`` becomes that of Redis, or an error."""
        self._waiting.append(command)
        if not self._is_writing:
            self._is_writing = True
            asyncio.get_running_loop().call_soon(self._write_next)

    def _write_next(self) -> None:
        """Write what waits: at once to a clean connection, else once there is another one."""
        batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
        self._is_writing = bool(batch)
        if not batch:
            return
        loop = asyncio.get_running_loop()
        self._began, self._deadline = time.perf_counter(), loop.time() + self._timeout
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
                refused = {it: error for it, error in errors if code_if_not_run(error)}
                unwritten = list(refused)
                errors = [(command, error) for command, error in errors if command not in refused]
                if refused:
                    errors += await self._send_again(refused)
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

    async def _send_again(self, refused: Mapping[Command, Exception]) -> Errors:
        """Send what Redis did not run; return the errors."""
        if {*map(code_if_not_run, refused.values())} - {"NOSCRIPT"}:
            await self._connect()
        return await self._send(refused, load={command.load for command in refused})

    async def _send(self, commands: Iterable[Command], *, load: Collection[bytes] = ()) -> Errors:
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
        self._connection = self._open_connection(await self._pool.get_connection())  # type: ignore[no-untyped-call] # the library's own

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.abandon()
            await connection.library.disconnect(nowait=True)
            await self._pool.release(connection.library)
