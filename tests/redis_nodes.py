"""Processes of Redis, Sentinel or a cluster's node on loopback ports, that tests kill, pause and cut off."""

import contextlib
import random
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from app.sandbox import embedded
from tests.waiting import wait_until

USER = "service:any-password"  # of the service and of tests; nodes connect to each other as the default user
OPTIONS = (
    *("--user", USER.partition(":")[0], "on", "nopass", "~*", "&*", "+@all"),
    *("--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"),
)
"""Options of a Redis that replicates, is used by ``USER``, and can be ``cut_off``."""


def free_ports(count: int) -> list[int]:
    """Return ports that stay free while a node is down: outside the range of ephemeral ports."""
    ports: set[int] = set()
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return [*ports]


def until(is_true: Callable[[], object]) -> None:
    """Wait until something is true; errors of Redis mean that it is not yet."""

    def is_true_now() -> bool:
        with contextlib.suppress(RedisError, OSError):
            return bool(is_true())
        return False

    wait_until(is_true_now)


@dataclass
class Node:
    """A process of Redis, or of a Sentinel."""

    folder: Path
    port: int
    options: tuple[str, ...]
    binary: str = field(default_factory=embedded._find_binary)
    user: str | None = None
    process: subprocess.Popen[bytes] = field(init=False)
    _is_paused: bool = field(init=False, default=False)

    def start(self, *options: str) -> None:
        self.folder.mkdir(exist_ok=True)
        command = [
            self.binary,
            *self.options,
            "--port",
            str(self.port),
            "--dir",
            str(self.folder),
            *options,
        ]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: self.send("PING"))

    def send(self, *command: str | int) -> Any:  # noqa: ANN401 - a RESP reply has no narrower type
        user, _, password = (self.user or "").partition(":")
        with Redis(
            port=self.port, username=user or None, password=password, socket_timeout=5, decode_responses=True
        ) as client:
            return client.execute_command(*command)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        self._is_paused = True

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self._is_paused = False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def is_running(self) -> bool:
        """Neither killed nor paused."""
        return self.process.poll() is None and not self._is_paused

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def cut_off(primary: Node) -> None:
    """Cut a primary off from Sentinels and replicas, but not from the service."""
    primary.send("ACL", "SETUSER", "default", "resetpass", ">another-password")
    primary.send("CLIENT", "KILL", "USER", "default")


def bring_back(node: Node) -> None:
    """Undo ``pause`` and ``cut_off``."""
    node.resume()
    node.send("ACL", "SETUSER", "default", "nopass")
