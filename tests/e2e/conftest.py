"""Fixtures that run the service's commands as separate processes, on real ports."""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.cli import main
from tests.waiting import PATIENCE, wait_until

COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
ROOT = Path(__file__).parents[2]
START_WITHIN = 120.0  # seconds; two, on a machine that does nothing else
# PYTHONPATH: the code of this checkout, even if another copy of the package is installed.
BARE = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), **COVERAGE}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "app", *arguments]


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.cycle(random.sample(range(20_000 + 1_000 * _WORKER, 21_000 + 1_000 * _WORKER), 1_000))


def free_port() -> int:
    """Return a free port of this pytest worker's range: a port chosen by the system could be assigned twice."""
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("unreachable: the cycle of ports never ends")


def wait_for(found: Callable[[], object], log: Path) -> None:
    """Wait until something is true; otherwise show the log."""
    deadline = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def open_api(base_url: str, tls: ssl.SSLContext | None = None) -> httpx.Client:
    """Return a client that keeps no connections. Of a service without TLS it loads no certificates: 25 ms each."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=base_url, verify=tls or False, limits=limits, timeout=PATIENCE)


# A process that has imported the service, and is forked for each demo: to import it takes a second of CPU.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["app.cli.serving"])


def _run_main(arguments: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
    """Run the command line in this new process, as if the shell had started it there."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv = arguments
    main()


class Demo:
    """A running ``plusofon-verify demo`` and its log."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.base_url = f"http://127.0.0.1:{(port := free_port())}"
        self.api = open_api(self.base_url)
        self.log = folder / f"log-{port}"
        environment = {**BARE, "XDG_RUNTIME_DIR": str(folder), **environment}
        arguments = ["plusofon-verify", "demo", "--port", str(port)]
        self.process = FORKS.Process(target=_run_main, args=(arguments, folder, environment, self.log), daemon=True)
        self.process.start()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if self.api.get("/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.api.post(path, json=body)

    def hear(self, phone: str) -> str:
        heard = None

        def is_answered() -> bool:
            nonlocal heard
            calls = self.api.get(f"/sandbox/phones/{phone}/calls").json()["calls"]
            heard = calls[-1]["heard"] if calls else None
            return bool(heard)

        wait_until(is_answered)
        return str(heard)

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def wait(self) -> int | None:
        self.process.join(PATIENCE)
        return self.process.exitcode

    def end(self, deadly: signal.Signals) -> int | None:
        self.send_signal(deadly)
        return self.wait()


@contextlib.contextmanager
def running(folder: Path, **environment: str) -> Iterator[Demo]:
    demo = Demo(folder, **environment)
    try:
        demo.wait_until_ready()
        yield demo
    finally:
        if demo.process.is_alive():
            demo.end(signal.SIGTERM)
        demo.api.close()


@pytest.fixture
def demo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Demo]:
    with running(tmp_path, LOG_LEVEL="debug", **getattr(request, "param", {})) as demo:
        yield demo


with_first_cooldown_of_production = pytest.mark.parametrize(
    "demo", [{"CALL_COOLDOWNS_SECONDS": "60"}], indirect=True, ids=[""]
)
without_cooldowns = pytest.mark.parametrize("demo", [{"CALL_COOLDOWNS_SECONDS": "0"}], indirect=True, ids=[""])
