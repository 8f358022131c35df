"""A server under measurement: a process of its own, with the processor time and the memory that it used."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.load import HOST

_ROOT = Path(__file__).parents[1]
_READY_WITHIN = 20.0  # seconds
_STOPPED_WITHIN = 10.0
_CPUCLOCK_SCHED = 2  # Linux: the time that the scheduler gave, in user and in system mode


class ServerFailed(Exception):
    """The server did not start; the message says how to see why."""


class Server:
    """``python -m`` something that listens on a port of its own, as a context manager.

    It sees no variable of the caller's environment and no ``.env``: what is measured are the defaults.
    """

    def __init__(self, module: Sequence[str], environment: Mapping[str, str]) -> None:
        self.port = _free_port()
        self._command = [sys.executable, "-m", *module, "--host", HOST, "--port", str(self.port)]
        self._environment = {"PATH": os.defpath, "PYTHONPATH": str(_ROOT), **environment}
        self._folder = tempfile.TemporaryDirectory(prefix="plusofon-verify-bench-")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=self._folder.name,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait_until_ready(self._process)
        except ServerFailed:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(_STOPPED_WITHIN)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process  # noqa: S101 - it was entered
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Return the processor time so far, of the process and its workers, over all threads."""
        # The clock that clock_getcpuclockid(3) names: counts nanoseconds, where /proc/<pid>/stat counts hundredths.
        return sum(time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) for pid in self._pids())

    def rss_mb(self) -> float:
        """Return the resident memory in MB, of the process and its workers."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._pids())
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def _pids(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [self.pid, *map(int, children.split())]

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _READY_WITHIN
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                variables = " ".join(f"{name}={value}" for name, value in self._environment.items())
                msg = f"A server did not start. To see why: env -i {variables} {' '.join(self._command)}"
                raise ServerFailed(msg)
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
