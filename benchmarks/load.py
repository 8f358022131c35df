"""A load of keep-alive HTTP/1.1 connections, from a client so small that it leaves the processor to the server."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

HOST = "127.0.0.1"

Session = Sequence[bytes]  # requests that go one after the other over the same connection


class UnexpectedAnswer(Exception):
    """An answer that no correct server gives; a measurement over it would mean nothing."""


def request(method: str, path: str, *, body: Mapping[str, str] | None = None, api_key: str) -> bytes:
    """Write a request down the way a caller's HTTP client does."""
    content = json.dumps(body).encode() if body else b""
    head = [
        f"{method} {path} HTTP/1.1",
        f"Host: {HOST}",
        "Accept: */*",
        "User-Agent: bench",
        f"Authorization: Bearer {api_key}",
        *(("Content-Type: application/json", f"Content-Length: {len(content)}") if body else ()),
    ]
    return "\r\n".join([*head, "", ""]).encode() + content


class Connection:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to a server of this machine."""
        return cls(*await asyncio.open_connection(HOST, port))

    async def send(self, payload: bytes) -> bytes:
        """Send a request and return the body of its answer. Raises UnexpectedAnswer unless that is a 200."""
        self._writer.write(payload)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        _, _, length = head.partition(b"\r\ncontent-length: ")
        body = await self._reader.readexactly(int(length[: length.index(b"\r")]))
        if not head.startswith(b"http/1.1 200 "):
            raise UnexpectedAnswer((head + body).decode())
        return body

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[Sequence[Connection]]:
    """Open ``count`` connections, and close them."""
    opened = [await Connection.open(port) for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            await connection.close()


@dataclass(slots=True)
class Load:
    """What a load met: the number of whole sessions, every answer's body, and how long each took (seconds)."""

    sessions: int = 0
    bodies: list[bytes] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0


async def drive(opened: Sequence[Connection], sessions: Iterable[Session], *, within: float) -> Load:
    """Put ``sessions`` through all connections at once; after ``within`` seconds, begin no other.

    Each connection sends its next request when it has the answer to the last, so the server is always busy, and the
    latency is mostly the time that a request waits for the others.
    """
    load = Load()
    left = iter(sessions)
    began = time.perf_counter()

    async def work(connection: Connection) -> None:
        for session in left:
            for payload in session:
                sent = time.perf_counter()
                load.bodies.append(await connection.send(payload))
                load.latencies.append(time.perf_counter() - sent)
            load.sessions += 1
            if time.perf_counter() - began > within:
                break

    async with asyncio.TaskGroup() as group:
        for connection in opened:
            group.create_task(work(connection))
    load.seconds = time.perf_counter() - began
    return load
