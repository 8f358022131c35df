"""A load of keep-alive HTTP/1.1 connections, from a client so small that it leaves the processor to the server."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

HOST = "127.0.0.1"

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class UnexpectedAnswer(Exception):
    """An answer that no correct server gives; a measurement over it would mean nothing."""


def request(
    method: str, path: str, *, body: Mapping[str, str] | None = None, api_key: str, idempotency_key: str = ""
) -> bytes:
    """Write a request down the way a caller's HTTP client does."""
    content = json.dumps(body).encode() if body else b""
    head = [
        f"{method} {path} HTTP/1.1",
        f"Host: {HOST}",
        "Accept: */*",
        "User-Agent: bench",
        f"Authorization: Bearer {api_key}",
        *((f"Idempotency-Key: {idempotency_key}",) if idempotency_key else ()),
        *(("Content-Type: application/json", f"Content-Length: {len(content)}") if body else ()),
    ]
    return "\r\n".join([*head, "", ""]).encode() + content


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time. ``bytes`` counts what was sent and received."""

    def __init__(self) -> None:
        self.bytes = 0
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # of TCP; uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Read an answer by its Content-Length."""
        self.bytes += len(data)
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or self._answer is None:
            return
        found = _LENGTH.search(head)
        if found is None or len(body) < int(found[1]):
            return
        self._received, answer, self._answer = b"", self._answer, None
        if head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 201 ")):
            answer.set_result(body)
        else:
            answer.set_exception(UnexpectedAnswer((head + b"\n" + body).decode()))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        if self._answer:
            self._answer.set_exception(UnexpectedAnswer(f"the connection was lost: {exc}"))

    def send(self, payload: bytes) -> asyncio.Future[bytes]:
        """Send a request; the future is the body of its answer, or UnexpectedAnswer unless that is a 200 or 201."""
        assert self._transport is not None  # noqa: S101 - it is connected
        self._answer = asyncio.get_running_loop().create_future()
        self.bytes += len(payload)
        self._transport.write(payload)
        return self._answer

    def close(self) -> None:
        """Close the connection."""
        if self._transport:
            self._transport.close()


Session = Callable[[Connection], Awaitable[Sequence[bytes]]]
"""Sends requests one after the other over a connection; returns the bodies of the answers."""


def requests(*payloads: bytes) -> Session:
    """Make a session of requests that are known before."""

    async def send(connection: Connection) -> Sequence[bytes]:
        return [await connection.send(payload) for payload in payloads]

    return send


@asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[Sequence[Connection]]:
    """Open ``count`` connections, and close them."""
    loop = asyncio.get_running_loop()
    opened = [(await loop.create_connection(Connection, HOST, port))[1] for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            connection.close()


@dataclass(slots=True)
class Load:
    """What a load met: every answer's body, and in seconds how long it took in all, and each session."""

    bodies: list[bytes] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0


async def saturate(opened: Sequence[Connection], sessions: Iterable[Session]) -> Load:
    """Put ``sessions`` through all connections at once: each begins the next one when it has ended the last."""
    load = Load()
    left = iter(sessions)
    began = time.perf_counter()

    async def work(connection: Connection) -> None:
        for session in left:
            sent = time.perf_counter()
            load.bodies += await session(connection)
            load.latencies.append(time.perf_counter() - sent)

    async with asyncio.TaskGroup() as group:
        for connection in opened:
            group.create_task(work(connection))
    load.seconds = time.perf_counter() - began
    return load


async def pace(opened: Sequence[Connection], sessions: Sequence[Session], *, per_second: float) -> Load:
    """Begin ``sessions`` at fixed moments, whether or not those before have ended.

    A latency is counted from the moment at which the session is begun, by a timer that is late by a millisecond or two;
    one that has to wait for a free connection has begun, and is as slow as it is for its caller.
    """
    load = Load()
    loop = asyncio.get_running_loop()
    free = list(opened)
    is_free = asyncio.Event()
    began = loop.time() + 0.05

    async def work(session: Session, sent: float) -> None:
        while not free:
            is_free.clear()
            await is_free.wait()
        connection = free.pop()
        load.bodies += await session(connection)
        load.latencies.append(time.perf_counter() - sent)  # the clock of uvloop counts whole milliseconds
        free.append(connection)
        is_free.set()

    async with asyncio.TaskGroup() as group:
        for number, session in enumerate(sessions):
            if (wait := began + number / per_second - loop.time()) > 0:
                await asyncio.sleep(wait)
            group.create_task(work(session, time.perf_counter()))
    load.seconds = loop.time() - began
    return load
