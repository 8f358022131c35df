"""One primary, two replicas and three Sentinels, that tests fail one by one."""

from pathlib import Path
from typing import Any, Self

from redis.exceptions import ResponseError

from tests.redis_nodes import OPTIONS, USER, Node, bring_back, free_ports, until

NAME = "main"
# In milliseconds. Sentinel's own are ten times as long, and would make each failover in the tests so.
PACE = (
    *("info-period", 100, "ping-period", 300, "ask-period", 50, "publish-period", 500, "election-timeout", 1000),
    *("tilt-period", 1000),  # for which it does nothing after a pause of the machine
)


class Topology:
    """The processes; a context manager. ``options`` are those of each Redis, beside what tests need.

    A node that is silent for ``down_after`` (ms) is failed over. A busy machine takes a node for dead that is not.
    """

    def __init__(self, folder: Path, *options: str, down_after: int = 500) -> None:
        ports = free_ports(6)
        redis = (*OPTIONS, *options)
        self.nodes = [Node(folder / f"redis-{port}", port, redis, user=USER) for port in ports[:3]]
        self.sentinels = [
            Node(folder / f"sentinel-{port}", port, (str(folder / f"sentinel-{port}.conf"), "--sentinel"))
            for port in ports[3:]
        ]
        self._down_after = down_after

    def __enter__(self) -> Self:
        primary, *replicas = self.nodes
        primary.start()
        for replica in replicas:
            replica.start("--replicaof", f"127.0.0.1 {primary.port}")
        for sentinel in self.sentinels:
            Path(sentinel.options[0]).write_text(
                f"bind 127.0.0.1\nsentinel monitor {NAME} 127.0.0.1 {primary.port} 2\n"
                f"sentinel down-after-milliseconds {NAME} {self._down_after}\nsentinel failover-timeout {NAME} 3000\n"
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

    def mend(self) -> None:
        """Restart what was killed, undo pauses and partitions, and wait until all are together again."""
        for node in (*self.nodes, *self.sentinels):
            if node.process.poll() is None:
                bring_back(node)
        for sentinel in self.sentinels:
            if sentinel.process.poll() is not None:
                self.start_sentinel(sentinel)
        for node in self.nodes:
            if node.process.poll() is not None:
                node.start("--replicaof", f"127.0.0.1 {self.primary.port}")
        self.wait_until_whole()


def _pairs(reply: Any) -> dict[str, str]:  # noqa: ANN401 - a list in RESP2, a dictionary in RESP3
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
