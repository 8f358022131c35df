"""Runs Lua scripts in Redis: those that wait at the same moment share one write on one connection."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from app.verification.errors import StoreUnavailable

log = logging.getLogger(__name__)

Argument = str | bytes | int
Command = tuple[Argument, ...]
Reply = asyncio.Future[Any]
Waited = Callable[[str, float], None]
"""Is told the name of a script and how long its caller waited, in seconds, in the caller's own task."""

_MOST_AT_ONCE = 256  # commands in one write: bounds what a slow reply holds up


class RoundTrip(Protocol):
    """Is told of each write and its replies."""

    def __call__(self, seconds: float, *, failed: bool) -> None:
        """Take note, at once, and raise nothing."""
        ...


class Script:
    """A Lua script: a file of ``app/store/lua``, behind ``common.lua`` and what else it ``shares`` with another."""

    def __init__(self, name: str, *, shares: tuple[str, ...] = ()) -> None:
        self.name = name
        folder = resources.files("app.store") / "lua"
        parts = ("common", *shares, name)
        self.source = "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)
        # The name that Redis itself gives a script; no security rests on it.
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class ScriptRunner:
    """Runs scripts on one Redis, each with one round trip and within ``timeout`` seconds.

    Those that are awaited together (``asyncio.gather``) share that round trip.

    While a write is under way, further commands gather and share the next one: under load this halves the cost of a
    command, and without load nothing waits. A command whose connection failed may have run, so it is never repeated;
    one that Redis refused because it does not know the script (after a failover or a flush) did not run, and is.
    """

    def __init__(
        self, redis: Redis, *, timeout: float, round_trip: RoundTrip | None = None, waited: Waited | None = None
    ) -> None:
        self._redis = redis
        self._round_trip = round_trip
        self._waited = waited
        self._scripts: dict[str, Script] = {}
        self._timeout = timeout
        self._waiting: list[tuple[Command, Reply]] = []
        self._writer: asyncio.Task[None] | None = None

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
        """Run a script and return its reply.

        Raises:
            StoreUnavailable: Redis was not reached, did not answer in time, or refused; the script may have run.

        """
        if self._waited is None:
            return await _result(self._submit_script(script, keys, arguments))
        began = time.perf_counter()
        try:
            return await _result(self._submit_script(script, keys, arguments))
        finally:
            self._waited(script.name, time.perf_counter() - began)

    async def run_each(self, script: Script, runs: Iterable[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Run a script with several keys and arguments, all in one round trip. Raises as ``run`` does."""
        began = time.perf_counter()
        replies = [self._submit_script(script, keys, arguments) for keys, arguments in runs]
        try:
            return [await _result(reply) for reply in replies]
        finally:
            if self._waited:
                self._waited(script.name, time.perf_counter() - began)

    async def ping(self) -> None:
        """Return if Redis answers; raises StoreUnavailable."""
        await _result(self._submit(("PING",)))

    def _submit_script(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
        self._scripts[script.sha] = script
        return self._submit(("EVALSHA", script.sha, len(keys), *keys, *arguments))

    def _submit(self, command: Command) -> Reply:
        """Queue a command for the next write; its reply, or what went wrong, will be the future's result."""
        reply: Reply = asyncio.get_running_loop().create_future()
        self._waiting.append((command, reply))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        return reply

    async def _write_all(self) -> None:
        """Write what waits, and what gathers meanwhile, until nothing does."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
                began, failed = time.perf_counter(), False
                try:
                    async with asyncio.timeout(self._timeout):
                        results = await self._execute([command for command, _ in batch])
                except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
                    # Those that gathered meanwhile fail as well: nobody waits for a dead Redis twice.
                    batch, self._waiting = batch + self._waiting, []
                    results, failed = [error] * len(batch), True
                if self._round_trip:
                    self._round_trip(time.perf_counter() - began, failed=failed)
                for (_, reply), result in zip(batch, results, strict=True):
                    if not reply.done():  # else its caller has gone
                        reply.set_result(result)
        finally:
            self._writer = None

    async def _execute(self, commands: Sequence[Command]) -> list[Any]:
        results = await self._send(commands)
        unknown = [place for place, result in enumerate(results) if isinstance(result, NoScriptError)]
        if unknown:
            await self._send([("SCRIPT LOAD", script.source) for script in self._scripts.values()])
            for place, result in zip(unknown, await self._send([commands[i] for i in unknown]), strict=True):
                results[place] = result
        return results

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)


async def _result(reply: Reply) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
    result = await reply
    if isinstance(result, Exception):
        log.error("store.unavailable", extra={"error": repr(result)})
        raise StoreUnavailable from result
    return result
