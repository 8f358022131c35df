"""A connection to Redis: opened by the library, with time-outs of our own; written and read by us."""

import asyncio
import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from app.store.cluster import CLUSTER_URL, Cluster
from app.store.failures import ConnectionLost
from app.store.sentinel import SENTINEL_URL, PrimaryPool

AnyRedis = Redis | Cluster


def pack(*words: str | bytes | int) -> bytes:
    """Return the bytes of a command."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type] # its stub means a tuple of any length
    return packed


def connect_any(url: str, *, timeout: float) -> AnyRedis:
    """Open a client for a URL of any kind: ``redis+cluster://`` and ``rediss+cluster://``, or as ``connect`` does."""
    if nodes := CLUSTER_URL.fullmatch(url):
        return Cluster(nodes, timeout=timeout, **_options(timeout))
    return connect(url, timeout=timeout)


async def nodes_of(redis: AnyRedis) -> Sequence[Redis]:
    """Return the clients of all nodes that take writes. Raises the library's errors."""
    return [*(await redis.primaries()).values()] if isinstance(redis, Cluster) else [redis]


def connect(url: str, *, timeout: float) -> Redis:
    """Open a client for a ``redis://``, ``rediss://`` or ``unix://`` URL; no connection is made yet.

    ``redis+sentinel://`` and ``rediss+sentinel://`` connect to the primary that the Sentinels name.

    The library's default is to repeat a command up to ten times when its reply is lost. A script that counts would
    count again, so nothing is repeated here: ``timeout`` (seconds) covers connecting and reading alike.
    """
    if sentinels := SENTINEL_URL.fullmatch(url):
        return Redis.from_pool(PrimaryPool(sentinels, timeout=timeout, **_options(timeout)))
    return Redis.from_url(url, **_options(timeout))


def _options(timeout: float) -> dict[str, Any]:
    return {
        "socket_connect_timeout": timeout,
        "socket_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        # RESP3 switches the library's maintenance notifications on, and with them its check of pooled connections off:
        # one that Redis closed was handed out again (redis-py 8.1, issue 4252).
        "protocol": 2,
        "client_name": "plusofon-verify",
    }


class Command:
    """The bytes of a command, and of the one that loads its script; ``reply`` becomes Redis' reply, or an error.

    On a cluster, ``keys`` say where it runs, and ``declares_all_keys`` whether it uses no others; ``deadline`` is
    when it fails, once a node did not run it, and ``redirections`` counts the other nodes that it was sent to.
    """

    __slots__ = ("data", "deadline", "declares_all_keys", "keys", "load", "redirections", "reply")

    def __init__(
        self, data: bytes, load: bytes = b"", keys: Sequence[str] = (), *, declares_all_keys: bool = True
    ) -> None:
        self.data = data
        self.load = load
        self.keys = keys
        self.declares_all_keys = declares_all_keys
        self.redirections = 0
        self.deadline = 0.0
        self.reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answer(self, reply: object) -> None:
        """Set the reply, unless the caller was cancelled or has one."""
        if not self.reply.done():
            self.reply.set_result(reply)


Errors = list[tuple[Command, Exception]]


class Connection(asyncio.Protocol):
    """A connection that the library has opened (address, TLS, user, database).

    The library packs commands in Python, and sets a time-out in a task of its own for each write and each reply.
    """

    def __init__(self, library: AbstractConnection) -> None:
        self.library = library
        writer = library._writer  # noqa: SLF001 - the library has no public way to the transport
        assert writer is not None  # noqa: S101 - the pool has connected it
        self._transport = writer.transport
        self._library_protocol = self._transport.get_protocol()
        self._transport.set_protocol(self)
        self._input = select.poll()
        self._input.register(self._transport.get_extra_info("socket"), select.POLLIN)
        self._reader = hiredis.Reader(replyError=ResponseError)
        self._unanswered: deque[Command] = deque()
        self._errors: Errors = []
        self._end: Callable[[Errors], None] | None = None

    def is_clean(self) -> bool:
        """Return whether the idle connection is open, and nothing unread has arrived: the system is asked."""
        return not self._transport.is_closing() and not self._input.poll(0)

    def send(self, commands: Sequence[Command], end: Callable[[Errors], None]) -> None:
        """Write commands and set their replies; then call ``end`` with those that have an error instead."""
        self._unanswered.extend(commands)
        self._end = end
        self._transport.write(b"".join([command.data for command in commands]))

    def fail(self, error: Exception) -> None:
        """Close the connection, and end a write in progress with an error for each command without a reply."""
        self._transport.abort()
        if end := self._end:
            self._end = None
            end([*self._errors, *((command, error) for command in self._unanswered)])

    def abandon(self) -> None:
        """Ignore whatever else arrives."""
        self._end = None

    def data_received(self, data: bytes) -> None:
        """Set the replies."""
        self._reader.feed(data)
        replies = []
        while (reply := self._reader.gets()) is not False:
            replies.append(reply)
        if len(replies) > len(self._unanswered):  # one was unsolicited, so any could be another command's
            self._transport.abort()
            return
        for reply in replies:
            command = self._unanswered.popleft()
            if isinstance(reply, ResponseError):
                self._errors.append((command, reply))
            else:
                command.answer(reply)
        if not self._unanswered and self._end:
            end, errors = self._end, self._errors
            self._end, self._errors = None, []
            end(errors)

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the library's side, and fail the write in progress."""
        self._library_protocol.connection_lost(exc)
        self.fail(ConnectionLost())
