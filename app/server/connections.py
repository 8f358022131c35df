"""The connections of one process: how many there may be, which one is closed when there are more, and deadlines."""

import asyncio
import logging
import math
import resource
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.server.http_protocol import HttpProtocol

log = logging.getLogger(__name__)

_REPORT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Limits on what a peer may use, in bytes, seconds and connections.

    A request, and a TLS handshake, must be complete within ``request_seconds``. A peer that accepts less than
    ``min_write_bytes`` of an answer in ``write_seconds`` is dropped. After a refusal at most ``linger_bytes`` are read,
    for ``linger_seconds``, which is also how long an idle connection is kept when the service stops. At most
    ``max_waiting`` connections wait for their peer. ``reserved_descriptors`` are for other files and connections.
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


class Connections:
    """All connections, and those that wait for their peer, in the order in which they began to wait.

    A connection waits for its peer until a request is complete, and until an answer is accepted. ``max_waiting`` bounds
    those, and the file descriptors of the process bound all. Beyond a bound the connection that has waited longest is
    closed, so a stranger who holds connections loses his own. When connections are scarce, each is closed after its
    answer, so constant requests do not hold one either.
    """

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.waiting: dict[HttpProtocol, None] = {}
        self.all: set[HttpProtocol] = set()
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max = math.inf
        if descriptors != resource.RLIM_INFINITY:
            self._max = descriptors - min(limits.reserved_descriptors, descriptors // 2)
        self._timer: asyncio.TimerHandle | None = None
        self._unreported: Counter[tuple[str, str]] = Counter()
        self._next_report_at: dict[tuple[str, str], float] = {}

    @property
    def are_scarce(self) -> bool:
        """Whether more than half of the possible connections are being served."""
        return len(self.all) - len(self.waiting) > self._max / 2

    def add(self, connection: "HttpProtocol") -> None:
        """Add a connection, which waits for its peer; beyond a bound, drop the one that has waited longest."""
        self.all.add(connection)
        self.waiting[connection] = None
        if len(self.waiting) > self.limits.max_waiting or len(self.all) > self._max:
            next(iter(self.waiting)).drop("limit")
        if not self._timer:
            self._timer = asyncio.get_running_loop().call_later(self.limits.check_seconds, self._check)

    def remove(self, connection: "HttpProtocol") -> None:
        """Remove a closed connection."""
        self.all.discard(connection)
        self.waiting.pop(connection, None)

    def report(self, event: str, reason: str) -> None:
        """Log an expected failure: each kind once in ten seconds, with the count since the last time."""
        self._unreported[event, reason] += 1
        self._log_reports()

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.all):
            connection.check_deadlines(now)
        self._log_reports()
        has_work = self.all or self._unreported
        self._timer = loop.call_later(self.limits.check_seconds, self._check) if has_work else None

    def _log_reports(self) -> None:
        now = time.monotonic()
        for (event, reason), count in list(self._unreported.items()):
            if now >= self._next_report_at.get((event, reason), now):
                log.info(event, extra={"reason": reason, "count": count})
                self._next_report_at[event, reason] = now + _REPORT_SECONDS
                del self._unreported[event, reason]
