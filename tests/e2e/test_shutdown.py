"""Graceful shutdown: requests in progress are finished, new ones are refused, and the process ends in time."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Demo, running
from tests.waiting import PATIENCE, wait_until

PHONE = "+79001234567"
STALLS = "+79000000006"  # the call is placed, but the provider never responds
PROVIDER_TIMEOUT = 6


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    settings = {"PLUSOFON_TIMEOUT_SECONDS": str(PROVIDER_TIMEOUT), "PLUSOFON_CONNECT_TIMEOUT_SECONDS": "1"}
    with running(tmp_path, **settings) as demo:
        yield demo


def wait_until_placed(demo: Demo, phone: str) -> None:
    wait_until(lambda: demo.api.get(f"/sandbox/phones/{phone}/calls").json()["calls"])


def connect(demo: Demo) -> socket.socket:
    host, port = demo.base_url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def wait_until_refused(demo: Demo) -> None:
    def is_refused() -> bool:
        try:
            connect(demo).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(is_refused)


def test_shutdown_finishes_requests_in_progress_and_ends_streams_at_once(demo: Demo) -> None:
    verification_id = demo.post("/verify/start", phone=PHONE).json()["verification_id"]
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.stream("GET", f"{demo.base_url}/verify/{verification_id}/events", timeout=PATIENCE) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines) == "retry: 2000"
        starting = pool.submit(demo.post, "/verify/start", phone=STALLS)
        wait_until_placed(demo, STALLS)

        demo.send_signal(signal.SIGTERM)
        signaled = time.monotonic()
        assert "event: verification" in list(lines)  # the stream ended properly and was not cut off
        assert time.monotonic() - signaled < PROVIDER_TIMEOUT - 1
        wait_until_refused(demo)
        assert not starting.done()

        answer = starting.result()
        assert (answer.status_code, answer.json()["call"]["status"]) == (201, "unconfirmed")
    assert demo.wait() == 0
    assert time.monotonic() - signaled < PROVIDER_TIMEOUT + 5

    handled = [json.loads(line) for line in demo.log.read_text().splitlines() if '"request.handled"' in line]
    (streamed,) = [line for line in handled if line["route"] == "/verify/{verification_id}/events"]
    assert (streamed["status"], streamed["method"]) == (200, "GET")
    assert "Traceback" not in demo.log.read_text()


def test_an_idle_process_ends_at_once(demo: Demo) -> None:
    demo.api.get("/livez")
    began = time.monotonic()

    assert demo.end(signal.SIGTERM) == 0

    assert time.monotonic() - began < PROVIDER_TIMEOUT - 1
    assert "Traceback" not in demo.log.read_text()


def test_shutdown_waits_for_an_endless_request_no_longer_than_the_longest_valid_one(tmp_path: Path) -> None:
    budgets = {"PLUSOFON_TIMEOUT_SECONDS": "0.6", "PLUSOFON_CONNECT_TIMEOUT_SECONDS": "0.5"}
    with running(tmp_path, REDIS_TIMEOUT_SECONDS="0.2", **budgets) as demo, connect(demo) as connection:
        connection.sendall(b"POST /verify/check HTTP/1.1\r\nHost: verify\r\nContent-Length: 9\r\n\r\n{")
        demo.api.get("/livez")  # by now the other request has begun
        began = time.monotonic()

        assert demo.end(signal.SIGINT) == 0

        assert 1 <= time.monotonic() - began < 10
