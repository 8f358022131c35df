"""One primary, two replicas and three Sentinels, as processes on loopback ports, that tests fail one by one."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from app.sandbox import embedded

NAME = "main"
USER = "service:any-password"  # of the service and of tests; Sentinels and replicas connect as the default user
SOON = 15.0  # seconds, on a machine that does much else
# In milliseconds. Sentinel's own are ten times as long, and would make each failover in the tests so.
PACE = ("info-period", 100, "ping-period", 300, "ask-period", 50, "publish-period", 500, "election-timeout", 1000)


def until(is_true: Callable[[], object], seconds: float = SOON) -> None:
    """Wait until something is true; errors of Redis mean that it is not yet."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(RedisError, OSError):
            if is_true():
                return
        assert time.monotonic() < deadline, is_true
        time.sleep(0.01)


@dataclass
class Node:
    """A process of Redis, or of a Sentinel."""

    folder: Path
    port: int
    options: tuple[str, ...]
    binary: str = field(default_factory=embedded._find_binary)
    user: str | None = None
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self, *options: str) -> None:
        self.folder.mkdir(exist_ok=True)
        command = [
            embedded._find_binary(),
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
            port=self.port, username=user or None, password=password, socket_timeout=1, decode_responses=True
        ) as client:
            return client.execute_command(*command)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class Topology:
    """The processes; a context manager. ``options`` are those of each Redis, beside what tests need."""

    def __init__(self, folder: Path, *options: str) -> None:
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(6)]
            ports = [int(listener.getsockname()[1]) for listener in listeners]
        user = ("--user", USER.partition(":")[0], "on", "nopass", "~*", "&*", "+@all")
        redis = (*user, "--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0", *options)
        self.nodes = [Node(folder / f"redis-{port}", port, redis, user=USER) for port in ports[:3]]
        self.sentinels = [
            Node(folder / f"sentinel-{port}", port, (str(folder / f"sentinel-{port}.conf"), "--sentinel"))
            for port in ports[3:]
        ]
        self._folder = folder

    def __enter__(self) -> Self:
        primary, *replicas = self.nodes
        primary.start()
        for replica in replicas:
            replica.start("--replicaof", f"127.0.0.1 {primary.port}")
        for sentinel in self.sentinels:
            Path(sentinel.options[0]).write_text(
                f"bind 127.0.0.1\nsentinel monitor {NAME} 127.0.0.1 {primary.port} 2\n"
                f"sentinel down-after-milliseconds {NAME} 500\nsentinel failover-timeout {NAME} 3000\n"
            )
            self.start_sentinel(sentinel)
        self.wait_until_whole()
        return self

    def __exit__(self, *_: object) -> None:
        for node in (*self.sentinels, *self.nodes):
            if hasattr(node, "process"):
                node.kill()

    def start_sentinel(self, sentinel: Node) -> None:
        sentinel.start()
        sentinel.send("SENTINEL", "DEBUG", *PACE)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{USER}@{','.join(sentinel.address for sentinel in self.sentinels)}/{NAME}/0"

    def primary_of(self, sentinel: Node) -> int:
        """Return the port of the primary that a Sentinel names."""
        return int(sentinel.send("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])

    def has_quorum(self, sentinel: Node) -> bool:
        """Return whether a Sentinel reaches enough others to fail over."""
        try:
            return bool(sentinel.send("SENTINEL", "CKQUORUM", NAME))
        except ResponseError:
            return False

    @property
    def primary(self) -> Node:
        """The primary that the most Sentinels name."""
        ports = sorted(self.primary_of(sentinel) for sentinel in self.sentinels)
        return next(node for node in self.nodes if node.port == ports[1])

    def wait_for_failover(self, earlier: Node) -> None:
        """Wait until every Sentinel names another primary, and it takes writes."""
        until(lambda: all(self.primary_of(sentinel) != earlier.port for sentinel in self.sentinels))
        until(lambda: self.primary.send("ROLE")[0] == "master")

    def wait_until_whole(self) -> None:
        """Wait until two replicas are in sync, and every Sentinel knows all nodes and Sentinels, and may fail over."""

        def is_whole() -> bool:
            for sentinel in self.sentinels:
                state = _pairs(sentinel.send("SENTINEL", "MASTER", NAME))
                if (state["flags"], state["num-slaves"], state["num-other-sentinels"]) != ("master", "2", "2"):
                    return False
                replicas = [_pairs(one) for one in sentinel.send("SENTINEL", "REPLICAS", NAME)]
                if any(one["flags"] != "slave" or one["master-link-status"] != "ok" for one in replicas):
                    return False
            return (
                all(replica[0] for replica in self.primary.send("ROLE")[2]) and len(self.primary.send("ROLE")[2]) == 2
            )

        until(is_whole)


def cut_off(primary: Node) -> None:
    """Cut a primary off from Sentinels and replicas, but not from the service."""
    primary.send("ACL", "SETUSER", "default", "resetpass", ">another-password")
    primary.send("CLIENT", "KILL", "USER", "default")


def bring_back(node: Node) -> None:
    """Undo ``pause`` and ``cut_off``."""
    node.resume()
    node.send("ACL", "SETUSER", "default", "nopass")


def _pairs(reply: Any) -> dict[str, str]:  # noqa: ANN401 - a list in RESP2, a dictionary in RESP3
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


@contextlib.contextmanager
def restored(topology: Topology) -> Iterator[Topology]:
    """Restart afterwards what was killed or paused, and wait until all are together again."""
    try:
        yield topology
    finally:
        for node in (*topology.nodes, *topology.sentinels):
            if node.process.poll() is None:
                bring_back(node)
        for sentinel in topology.sentinels:
            if sentinel.process.poll() is not None:
                topology.start_sentinel(sentinel)
        for node in topology.nodes:
            if node.process.poll() is not None:
                node.start("--replicaof", f"127.0.0.1 {topology.primary.port}")
        topology.wait_until_whole()
