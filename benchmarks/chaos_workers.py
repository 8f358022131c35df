"""The workers under chaos: started, killed one after the other, and started again at the same address."""

import asyncio
import os
import random
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.load import HOST

_ROOT = Path(__file__).parents[1]
_READY_WITHIN = 30.0  # seconds
_STOPPED_WITHIN = 8.0
_BETWEEN_INTERRUPTS = 0.2

_BROKEN_OFF = re.compile(r"KeyboardInterrupt|CancelledError")

# How a worker ends: as a machine that loses its power, as a deployment ends it, as somebody who presses Ctrl-C twice.
ENDS: Mapping[str, Sequence[signal.Signals]] = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT twice": (signal.SIGINT, signal.SIGINT),
}


class WorkerFailed(Exception):
    """A worker did not start; the message is the end of its log."""


class Worker:
    """One process of the service on a port of its own, which stays the same when it is started again."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.port = _free_port()
        self.log = folder / f"{self.port}.log"
        self._folder = folder
        self._environment = {"PATH": os.defpath, "PYTHONPATH": str(_ROOT), "PORT": str(self.port), **environment}
        self._process: asyncio.subprocess.Process | None = None
        self._is_ending = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"

    async def start(self) -> None:
        """Start it, and wait until it listens. Raises WorkerFailed."""
        self._is_ending = False
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.chaos_worker"),
                cwd=self._folder,
                env=self._environment,
                stdin=asyncio.subprocess.PIPE,  # ends with this process, however that ends
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the workers by itself
            )
        await self._wait_until_ready(self._process)

    async def revive(self) -> None:
        """Start it if it is dead, or about to be; return when it listens. Raises WorkerFailed."""
        if self._is_ending:
            await self.end(())
        if self._process and self._process.returncode is None:
            await self._wait_until_ready(self._process)
        else:
            await self.start()

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + _READY_WITHIN
        while not await self._answers():
            if process.returncode is not None or time.monotonic() > deadline:
                raise WorkerFailed(self.log.read_text(errors="replace")[-2000:])
            await asyncio.sleep(0.05)

    async def end(self, signals: Sequence[signal.Signals]) -> bool:
        """Send the signals, and wait until it has ended; kill it, and return False, where it does not."""
        process = self._process
        if process is None:
            return True
        self._is_ending = True
        for number, sent in enumerate(signals):
            await asyncio.sleep(_BETWEEN_INTERRUPTS if number else 0)
            if process.returncode is None:
                process.send_signal(sent)
        try:
            async with asyncio.timeout(_STOPPED_WITHIN):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            return False
        return True

    async def _answers(self) -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, self.port)
            writer.close()
            return True
        return False


class Workers:
    """Several workers, as an async context manager that leaves none behind."""

    def __init__(self, count: int, environment: Mapping[str, str], folder: Path) -> None:
        self.all: Sequence[Worker] = [Worker(environment, folder) for _ in range(count)]
        self.ended: Counter[str] = Counter()
        self.restarts = 0

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(worker.start() for worker in self.all))
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def end_one_every(self, seconds: float, note: Callable[[str], None]) -> None:
        """End one after the other, each time in another way, and start each again, until canceled; ``note`` each."""
        began = time.monotonic()
        for turn, (name, signals) in enumerate(cycle(ENDS.items()), start=1):
            await asyncio.sleep(began + turn * seconds - time.monotonic())
            worker = self.all[random.randrange(len(self.all))]  # noqa: S311 - no secret
            note(name)
            has_ended = await worker.end(signals)
            self.ended[name if has_ended else f"{name}, and SIGKILL in the end"] += 1
            await worker.start()
            self.restarts += 1

    async def revive(self) -> None:
        """Have all of them alive, whatever happened to them."""
        await asyncio.gather(*(worker.revive() for worker in self.all))

    def logged(self) -> Counter[str]:
        """Count what the workers logged, by event."""
        found: Counter[str] = Counter()
        for line in "".join(worker.log.read_text(errors="replace") for worker in self.all).splitlines():
            _, named, rest = line.partition('"event":"')
            if named:
                found[rest.partition('"')[0]] += 1
        return found

    def tracebacks(self) -> list[str]:
        """List the ends of all tracebacks that the workers logged, each of which is a bug.

        Those are left out with which uvicorn tells of what a second SIGINT breaks off.
        """
        lines = (line for worker in self.all for line in worker.log.read_text(errors="replace").splitlines())
        return [line[-1500:] for line in lines if "Traceback" in line and not _BROKEN_OFF.search(line)]

    async def _stop(self) -> None:
        await asyncio.gather(*(worker.end(ENDS["SIGTERM"]) for worker in self.all))


def _free_port() -> int:
    """Find a port that stays free while its worker is dead: one that no outgoing connection is given by itself."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - no secret
        with suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
