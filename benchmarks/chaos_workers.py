"""The worker processes of the chaos test: started, ended one by one, and started again on the same port."""

import asyncio
import os
import random
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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

# The last is redis-py's, when a coroutine of it is closed after the event loop.
_BROKEN_OFF = re.compile(r"KeyboardInterrupt|CancelledError|RuntimeError: no running event loop")

# How a worker ends: like a power failure, like a deployment, like a developer who presses Ctrl-C twice.
ENDS: Mapping[str, Sequence[signal.Signals]] = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT twice": (signal.SIGINT, signal.SIGINT),
}


class WorkerFailed(Exception):
    """A worker did not start; the message is the end of its log."""


class Worker:
    """One process of the service; it keeps its port when it is started again."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.port = _free_port()
        self.log = folder / f"{self.port}.log"
        self._folder = folder
        self._environment = {"PATH": os.defpath, "PYTHONPATH": str(_ROOT), "PORT": str(self.port), **environment}
        self._process: asyncio.subprocess.Process | None = None
        self._is_ending = False

    @property
    def url(self) -> str:
        """The URL of the worker."""
        return f"http://{HOST}:{self.port}"

    async def start(self) -> None:
        """Start the process, and wait until it listens. Raise WorkerFailed if it does not."""
        self._is_ending = False
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.chaos_worker"),
                cwd=self._folder,
                env=self._environment,
                stdin=asyncio.subprocess.PIPE,  # closes when this process ends for any reason
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C goes only to this process, which then ends the workers
            )
        await self._wait_until_ready(self._process)

    async def revive(self) -> None:
        """Start the process if it has ended or is ending; return when it listens. Raise WorkerFailed if it does not."""
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
        """Send the signals and wait for the process to end. Return False if it had to be killed."""
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
    """Several workers, as an async context manager that ends all of them."""

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

    async def end_one_every(self, seconds: float, note: Callable[[str, str], None]) -> None:
        """End workers one by one, in alternating ways, and restart them, until canceled.

        ``note`` is called before each end, with the way and the URL of the worker.
        """
        began = time.monotonic()
        for turn, (name, signals) in enumerate(cycle(ENDS.items()), start=1):
            await asyncio.sleep(began + turn * seconds - time.monotonic())
            worker = self.all[random.randrange(len(self.all))]  # noqa: S311 - no secret
            note(name, worker.url)
            has_ended = await worker.end(signals)
            self.ended[name if has_ended else f"{name}, finally SIGKILL"] += 1
            await worker.start()
            self.restarts += 1

    async def revive(self) -> None:
        """Start all workers that are not running."""
        await asyncio.gather(*(worker.revive() for worker in self.all))

    def logged(self) -> Counter[str]:
        """Count the log lines of the workers by event."""
        found: Counter[str] = Counter()
        for line in "".join(worker.log.read_text(errors="replace") for worker in self.all).splitlines():
            _, named, rest = line.partition('"event":"')
            if named:
                found[rest.partition('"')[0]] += 1
        return found

    def tracebacks(self) -> list[str]:
        """Return the ends of all logged tracebacks, each of which is a bug.

        Tracebacks that uvicorn logs for requests cut off by a second SIGINT are excluded.
        """
        found = [text for worker in self.all for text in find_tracebacks(worker.log.read_text(errors="replace"))]
        return [text[-1500:] for text in found if not _BROKEN_OFF.search(text)]

    async def _stop(self) -> None:
        await asyncio.gather(*(worker.end(ENDS["SIGTERM"]) for worker in self.all))


def find_tracebacks(log: str) -> Iterator[str]:
    """Yield the tracebacks in a log, each as one line, from its first line to its error."""
    lines = iter(log.splitlines())
    for line in lines:
        if "Traceback" in line:
            is_json = line.startswith("{")
            yield line if is_json else " ".join([line, *_until_error(lines)])


def _until_error(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line.strip()
        if not line.startswith(" "):
            return


def _free_port() -> int:
    """Return a port that stays free while its worker is not running: outside the range of ephemeral ports."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - no secret
        with suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
