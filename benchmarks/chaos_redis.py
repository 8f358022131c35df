"""The Redis of the chaos test: one server, a primary behind Sentinels, or a cluster; and the ways in which it fails.

A failure is played in a thread. It returns once the service can work again: after a failover, when another primary
takes writes. ``mend`` then starts what was killed, and waits until everything is replicated again.
"""

import os
import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from redis import Redis

from app.sandbox.embedded import EmbeddedServer
from tests.redis_cluster import Cluster
from tests.redis_nodes import USER, Node, cut_off
from tests.sentinels import NAME, Topology

Kind = Literal["standalone", "sentinel", "cluster"]
STANDS_STILL = 1.5  # seconds; longer than the service waits for Redis
_SILENT_MS = 2000  # until a node is failed over: a busy machine takes one for dead that is not, and may lose its writes
_SLOTS_MOVED = 200
_NEEDS_A_REPLICA = ("--min-replicas-to-write", "1")  # as docs/operations.md says: a primary alone takes no writes


@dataclass(frozen=True, slots=True)
class WayToFail:
    """A failure; ``play`` blocks. With ``may_lose_writes`` a replica is promoted that may lack the last ones."""

    name: str
    play: Callable[[], object]
    may_lose_writes: bool = False


class ChaosRedis(ABC):
    """Redis in one of its kinds; a context manager."""

    url: str
    """The service's ``REDIS_URL``."""

    ways_to_fail: Sequence[WayToFail]

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @abstractmethod
    def primaries(self) -> list[str]:
        """Return the URLs of the nodes that have keys."""

    @abstractmethod
    def failovers(self) -> int:
        """Return how often a replica became the primary, whoever caused it."""

    @abstractmethod
    def mend(self) -> None:
        """Undo a failure that was played, and wait until everything is replicated again."""


class Standalone(ChaosRedis):
    """One server, which is paused from time to time, as by a live migration of its machine or by a slow disk."""

    def __enter__(self) -> Self:
        self.url = self._stack.enter_context(EmbeddedServer()).url
        with Redis.from_url(self.url) as client:
            self._pid: int = client.info("server")["process_id"]
        self.ways_to_fail = [WayToFail("pause", self._pause)]
        return self

    def _pause(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        try:
            time.sleep(STANDS_STILL)
        finally:
            os.kill(self._pid, signal.SIGCONT)

    def primaries(self) -> list[str]:
        """Return the URL of the server."""
        return [self.url]

    def failovers(self) -> int:
        """Return 0: there is no replica."""
        return 0

    def mend(self) -> None:
        """Do nothing: the pause is over."""


class BehindSentinels(ChaosRedis):
    """A primary with two replicas and three Sentinels."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._topology = Topology(folder, *_NEEDS_A_REPLICA, down_after=_SILENT_MS)

    def __enter__(self) -> Self:
        self._stack.enter_context(self._topology)
        self.url = self._topology.url
        self.ways_to_fail = [
            WayToFail("primary killed", lambda: self._fail(Node.kill), may_lose_writes=True),
            WayToFail("primary paused", lambda: self._fail(Node.pause), may_lose_writes=True),
            WayToFail("primary demoted", lambda: self._fail(self._demote)),
            WayToFail("primary partitioned", lambda: self._fail(cut_off), may_lose_writes=True),
        ]
        return self

    def _fail(self, fail: Callable[[Node], None]) -> None:
        primary = self._topology.primary
        fail(primary)
        self._topology.wait_for_failover(primary)

    def _demote(self, primary: Node) -> None:
        """Fail over as docs/operations.md says: without the pause, the old primary would take writes that get lost."""
        primary.send("CLIENT", "PAUSE", 5000, "WRITE")
        self._topology.sentinels[0].send("SENTINEL", "FAILOVER", NAME)

    def primaries(self) -> list[str]:
        """Return the URL of the primary."""
        return [_url(self._topology.primary)]

    def failovers(self) -> int:
        """Return how many the Sentinels announced."""
        return max(sentinel.log.count("+switch-master") for sentinel in self._topology.sentinels)

    def mend(self) -> None:
        """Start what was killed, as a replica."""
        self._topology.mend()


class InCluster(ChaosRedis):
    """A cluster of three primaries with a replica each."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._cluster = Cluster(folder, *_NEEDS_A_REPLICA, node_timeout=_SILENT_MS)

    def __enter__(self) -> Self:
        self._stack.enter_context(self._cluster)
        self.url = self._cluster.url
        self.ways_to_fail = [
            WayToFail("primary killed", lambda: self._fail(Node.kill), may_lose_writes=True),
            WayToFail("primary paused", lambda: self._fail(Node.pause), may_lose_writes=True),
            WayToFail("primary demoted", lambda: self._fail(self._cluster.fail_over)),
            WayToFail("primary partitioned", lambda: self._fail(self._cluster.isolate), may_lose_writes=True),
            WayToFail("slots moved", self._move_slots),
        ]
        return self

    def _fail(self, fail: Callable[[Node], object]) -> None:
        primary = random.choice(self._cluster.primaries)  # noqa: S311 - no secret
        fail(primary)
        self._cluster.wait_for_failover(primary)

    def _move_slots(self) -> None:
        source, target = random.sample(self._cluster.primaries, 2)
        slots = self._cluster.slots_of(source)
        self._cluster.move_slots(random.sample(slots, min(_SLOTS_MOVED, len(slots))), source, target)

    def primaries(self) -> list[str]:
        """Return the URLs of the primaries."""
        return [_url(node) for node in self._cluster.primaries]

    def failovers(self) -> int:
        """Return how many elections replicas won, and how many took over without one."""
        return sum(
            node.log.count("Failover election won") + node.log.count("Taking over the primary")
            for node in self._cluster.nodes
        )

    def mend(self) -> None:
        """Start what was killed, as a replica."""
        self._cluster.mend()


def _url(node: Node) -> str:
    return f"redis://{USER}@{node.address}"


def make_redis(kind: Kind, folder: Path) -> AbstractContextManager[ChaosRedis]:
    """Return a Redis of that kind, not started yet; ``folder`` is for its files."""
    match kind:
        case "standalone":
            return Standalone()
        case "sentinel":
            return BehindSentinels(folder)
        case "cluster":
            return InCluster(folder)
