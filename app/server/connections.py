"""The connections of one process: how many there may be, which one is closed when there are more, and deadlines."""

import asyncio
import logging
import math
import resource
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)

_REPORT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What a peer may take, in bytes, seconds and connections.

    A request is whole within ``request_seconds``, and so is a TLS handshake. A peer that takes less than
    ``min_write_bytes`` of its answer in ``write_seconds`` is dropped. After a refusal ``linger_bytes`` are read for
    ``linger_seconds`` at most; so long an idle connection is kept when the service stops. ``max_waiting`` is the number
    of connections that wait for their peer, ``reserved_descriptors`` that of the files and connections that are no
    client's.
    """

    head_bytes: int = 64 * 1024
    body_buffer_bytes: int = 32 * 1024
    linger_bytes: int = 256 * 1024
    min_write_bytes: int = 5_000
    request_seconds: float = 10.0
    write_seconds: float = 10.0
    linger_seconds: float = 1.0
    check_seconds: float = 0.25
    max_waiting: int = 1_000
    reserved_descriptors: int = 100


class Connection(Protocol):
    """What is known of a connection here."""

    def check(self, now: float) -> None:
        """Act on a deadline that has passed."""

    def drop(self, reason: str) -> None:
        """Close it at once."""


class Connections:
    """All connections, in the order in which they began to wait for their peer.

    A connection waits for its peer while a request has not come whole, and while an answer is not taken. What waits is
    bounded by ``max_waiting``, and all of them by the descriptors of the process; beyond either bound the one that has
    waited longest is closed, so that strangers who hold connections cannot keep others out. Nor can those who ask all
    the time: when connections are scarce, each is closed with its next answer.
    """

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.waiting: dict[Connection, None] = {}
        self.all: set[Connection] = set()
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max = math.inf
        if descriptors != resource.RLIM_INFINITY:
            self._max = descriptors - min(limits.reserved_descriptors, descriptors // 2)
        self._checks: asyncio.TimerHandle | None = None
        self._unreported: Counter[tuple[str, str]] = Counter()
        self._reported_at: dict[tuple[str, str], float] = {}

    @property
    def are_scarce(self) -> bool:
        """Whether more than half of all that are possible are being served, so that each should be given up soon."""
        return len(self.all) - len(self.waiting) > self._max / 2

    def add(self, connection: Connection) -> None:
        """Take a new connection, which waits for its peer, and close the one that waits longest if that is too many."""
        self.all.add(connection)
        self.waiting[connection] = None
        if len(self.waiting) > self.limits.max_waiting or len(self.all) > self._max:
            next(iter(self.waiting)).drop("limit")
        if not self._checks:
            self._check_later()

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self.all.discard(connection)
        self.waiting.pop(connection, None)

    def report(self, event: str, reason: str) -> None:
        """Log an expected failure: one event for each kind in ten seconds, with how many there were since the last."""
        self._unreported[event, reason] += 1
        self._log_reports(asyncio.get_running_loop().time())

    def _check_later(self) -> None:
        self._checks = asyncio.get_running_loop().call_later(self.limits.check_seconds, self._check)

    def _check(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.all):
            connection.check(now)
        self._log_reports(now)
        self._checks = None
        if self.all or self._unreported:
            self._check_later()

    def _log_reports(self, now: float) -> None:
        for (event, reason), count in list(self._unreported.items()):
            if now >= self._reported_at.get((event, reason), now):
                log.info(event, extra={"reason": reason, "count": count})
                self._reported_at[event, reason] = now + _REPORT_SECONDS
                del self._unreported[event, reason]
