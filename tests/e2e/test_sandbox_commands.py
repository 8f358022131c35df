"""The developer's day in the sandbox: commands in another shell find it, and show and try its events."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from tests.e2e.conftest import BARE, Demo, command, running
from tests.e2e.test_commands import COMPLETE, run
from tests.waiting import PATIENCE, wait_until

PHONE = "+79001234567"


def run_files(folder: Path) -> list[Path]:
    return list((folder / "plusofon-verify").glob("*"))


def counted_calls(count: int, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``stats`` until it has counted so many calls: counts are written behind, once a second."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = run("stats", "--json", cwd=folder, **environment)
        if json.loads(done.stdout)["total"]["placed"] == count:
            return done
        assert time.monotonic() < deadline, done.stdout


def test_commands_in_another_shell_find_the_running_sandbox(demo: Demo, tmp_path: Path) -> None:
    started = demo.post("/verify/start", phone=PHONE).json()

    shown = run("verifications", "show", started["verification_id"], "--json", cwd=tmp_path)
    listed = run("guard", "list", cwd=tmp_path)
    failed = run("events", "failed", cwd=tmp_path)
    attempts = run("attempts", "list", cwd=tmp_path)
    counted = counted_calls(1, tmp_path)
    erased = run("forget", PHONE, "--yes", cwd=tmp_path)

    assert json.loads(shown.stdout)["status"] == "pending"
    assert erased.stdout.startswith("Erased: 1 verifications")
    assert started["verification_id"] in attempts.stdout
    for done in (counted, shown, listed, failed, attempts, erased):
        assert (done.returncode, done.stderr) == (0, f"The sandbox at {demo.base_url}:\n")


def test_the_run_file_is_private_and_ends_with_the_sandbox(demo: Demo, tmp_path: Path) -> None:
    (file,) = run_files(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700

    demo.end(signal.SIGTERM)

    assert run_files(tmp_path) == []


def test_the_run_file_of_a_killed_sandbox_is_ignored_and_removed(demo: Demo, tmp_path: Path) -> None:
    demo.end(signal.SIGKILL)
    assert len(run_files(tmp_path)) == 1

    done = run("stats", cwd=tmp_path)

    assert done.returncode == 2
    assert "No sandbox of yours runs on this machine" in done.stderr
    assert run_files(tmp_path) == []


def test_with_two_sandboxes_a_command_asks_which_is_meant(demo: Demo, tmp_path: Path) -> None:
    with running(tmp_path) as other:
        other.post("/verify/start", phone=PHONE)

        unclear = run("stats", cwd=tmp_path)
        for sandbox, calls in ((demo, 0), (other, 1)):
            counted_calls(calls, tmp_path, PORT=sandbox.base_url.rpartition(":")[2])

    assert unclear.returncode == 1
    assert demo.base_url in unclear.stderr
    assert other.base_url in unclear.stderr
    assert "Set PORT" in unclear.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"MODE": "production"},
        {"API_KEYS": COMPLETE["API_KEYS"]},
        {"REDIS_URL_FILE": "/nonexistent"},
        {"MODE": "sandbox", "REDIS_URL": "redis://127.0.0.1:1"},
    ],
    ids=", ".join,
)
@pytest.mark.usefixtures("demo")
def test_settings_of_another_service_are_never_mixed_with_a_sandbox(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = run("stats", cwd=tmp_path, **environment)

    assert done.returncode in {1, 2}
    assert "The sandbox at" not in done.stderr


@pytest.mark.usefixtures("demo")
def test_a_run_folder_that_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "plusofon-verify").chmod(0o777)

    done = run("stats", cwd=tmp_path)

    assert done.returncode == 2
    assert "No sandbox of yours" in done.stderr


def test_the_sandbox_starts_without_a_folder_for_its_run_file(tmp_path: Path) -> None:
    with running(tmp_path, XDG_RUNTIME_DIR=str(tmp_path / "missing")) as demo:
        assert "sandbox.run_file_failed" in demo.log.read_text()


class Receiver:
    """An HTTP server that keeps what it is sent, and answers ``status``."""

    def __init__(self, status: int = 204) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.arrived = threading.Event()
        received, arrived = self.received, self.arrived

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(status)
                self.end_headers()
                arrived.set()

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/phone"


@contextmanager
def receiving(status: int = 204) -> Iterator[Receiver]:
    receiver = Receiver(status)
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        thread.join()
        receiver.server.server_close()


@contextmanager
def tailing(folder: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``events tail``; its first line on standard error says that it is there."""
    process = subprocess.Popen(
        command("events", "tail", *options),
        cwd=folder,
        env={**BARE, "XDG_RUNTIME_DIR": str(folder), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert "The sandbox at" in process.stderr.readline()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_request(demo: Demo, path: str) -> None:
    """Wait until the sandbox has answered a request: the log has its line."""
    wait_until(lambda: f'"route":"{path}"' in demo.log.read_text())


def test_events_are_printed_as_they_are_sent_and_forwarded_with_a_signature(demo: Demo, tmp_path: Path) -> None:
    secret = "whsec_" + "c2VjcmV0" * 4
    with (
        receiving() as receiver,
        tailing(tmp_path, "--forward-to", receiver.url.removeprefix("http://"), WEBHOOK_SECRET=secret) as tail,
    ):
        wait_for_request(demo, "/sandbox/events")
        started = demo.post("/verify/start", phone=PHONE).json()
        assert tail.stdout
        lines = [tail.stdout.readline(), tail.stdout.readline()]
        tail.send_signal(signal.SIGINT)
        assert tail.wait(PATIENCE) == 0

    assert re.match(r"\d\d:\d\d:\d\d  verification\.created ", lines[0])
    assert started["verification_id"] in lines[0]
    assert lines[1].strip() == f"→ 204 {receiver.url}"
    headers, body = receiver.received[0]
    event = Webhook(secret).verify(body, headers)
    assert (event["type"], event["data"]["phone"]) == ("verification.created", "+7900•••4567")


@pytest.mark.parametrize("kind", ["created", "verified", "locked", "canceled", "expired"])
def test_an_event_is_triggered_by_a_real_verification(demo: Demo, tmp_path: Path, kind: str) -> None:
    done = run("events", "trigger", f"verification.{kind}", cwd=tmp_path)

    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert f"verification.{kind}" in lines[-1]
    assert "verification.created" in lines[0]
    found = re.search(r"vrf_\w+", lines[0])
    assert found
    status = demo.api.get(f"/verify/{found[0]}").json()["status"]
    assert status == {"created": "pending", "expired": 404}.get(kind, kind)


@pytest.mark.parametrize("demo", [{"SANDBOX_PACE_SECONDS": "0.1"}], indirect=True, ids=[""])
@pytest.mark.usefixtures("demo")
def test_a_change_of_the_call_is_triggered(tmp_path: Path) -> None:
    done = run("events", "trigger", "call.status_changed", cwd=tmp_path)

    assert "call.status_changed" in done.stdout.splitlines()[-1]


@pytest.mark.usefixtures("demo")
def test_an_unknown_type_is_a_usage_error_that_lists_the_types(tmp_path: Path) -> None:
    done = run("events", "trigger", "verification.begun", cwd=tmp_path)

    assert done.returncode == 2
    assert "must be one of verification.created, call.status_changed, " in done.stderr


@pytest.mark.parametrize("arguments", [("events", "tail"), ("events", "trigger", "verification.created")], ids=" ".join)
def test_without_a_sandbox_tail_and_trigger_say_what_is_missing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert "`make run` starts one" in done.stderr


def test_failed_deliveries_to_the_clients_own_endpoint_are_shown_with_the_reason(tmp_path: Path) -> None:
    with receiving(status=500) as receiver:
        client = {"webhook_url": receiver.url, "webhook_secret": "whsec_" + "c2VjcmV0" * 4}
        with running(tmp_path, CLIENTS=json.dumps({"sandbox": client})) as demo:
            done = run("events", "trigger", "verification.created", cwd=tmp_path)
            attempt, *_ = demo.api.get("/sandbox/events").json()["attempts"]

    assert f"→ {receiver.url} status 500" in done.stdout
    assert (attempt["url"], attempt["error"]) == (receiver.url, "status 500")
    assert attempt["event_id"] == receiver.received[0][0]["webhook-id"]
    assert attempt["event"] == json.loads(receiver.received[0][1])


def test_a_sandbox_with_api_keys_asks_for_one(tmp_path: Path) -> None:
    keys = run("keygen", "api-key", "shop", cwd=tmp_path).stdout.splitlines()
    with running(tmp_path, API_KEYS=keys[1]):
        environment = {"MODE": "sandbox", "API_KEYS": keys[1]}
        refused = run("events", "trigger", "verification.created", cwd=tmp_path, **environment)
        done = run("events", "trigger", "verification.created", cwd=tmp_path, API_KEY=keys[-1], **environment)

    assert refused.returncode == 1
    assert "(HTTP 401)" in refused.stderr
    assert (done.returncode, "verification.created" in done.stdout) == (0, True)


def test_the_demo_has_looser_limits_and_says_so(demo: Demo) -> None:
    assert "CALL_COOLDOWNS_SECONDS=2" in demo.log.read_text()
    assert demo.post("/verify/start", phone=PHONE).json()["resend_in"] == 2


@pytest.mark.parametrize("demo", [{"CALL_COOLDOWNS_SECONDS": "60"}], indirect=True, ids=[""])
def test_the_demo_keeps_limits_that_are_set(demo: Demo) -> None:
    assert "CALL_COOLDOWNS_SECONDS=2" not in demo.log.read_text()
    assert demo.post("/verify/start", phone=PHONE).json()["resend_in"] == 60


def _in_a_terminal(folder: Path, *arguments: str, **environment: str) -> str:
    """Return what a command prints in a terminal."""
    terminal, process_side = pty.openpty()
    try:
        environment = {**BARE, "XDG_RUNTIME_DIR": str(folder), "TERM": "xterm", **environment}
        subprocess.run(arguments, cwd=folder, env=environment, stdout=process_side, stderr=process_side, check=False)
        os.close(process_side)
        output = b""
        while True:
            try:
                output += os.read(terminal, 65536)
            except OSError:  # all of it was read
                return output.decode()
    finally:
        os.close(terminal)


LOGGING = (
    "from app.telemetry.logging import configure_logging; import logging;"
    " configure_logging(level='info', style='auto'); logging.warning('something')"
)


@pytest.mark.parametrize(
    "program", [command("doctor"), [sys.executable, "-c", LOGGING]], ids=["command", "console log"]
)
def test_there_are_colours_in_a_terminal_unless_no_color_is_set(tmp_path: Path, program: list[str]) -> None:
    colourful = _in_a_terminal(tmp_path, *program, MODE="sandbox")
    plain = _in_a_terminal(tmp_path, *program, MODE="sandbox", NO_COLOR="1")

    assert "\x1b[" in colourful
    assert len(plain.splitlines()) == len(colourful.splitlines())
    assert "\x1b[" not in plain
