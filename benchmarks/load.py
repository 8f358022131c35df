"""Load over keep-alive HTTP/1.1 connections, with a client that needs little CPU."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

HOST = "127.0.0.1"

Session = Sequence[bytes]  # requests sent one after the other over the same connection


class UnexpectedAnswer(Exception):
    """A response that a correct server would not send; it invalidates the measurement."""


def request(method: str, path: str, *, body: Mapping[str, str] | None = None, api_key: str) -> bytes:
    """Return a request as the HTTP client of a caller would send it."""
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
        """Send a request and return the response body. Raise UnexpectedAnswer unless the status is 200."""
        self._writer.write(payload)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        _, _, length = head.partition(b"\r\ncontent-length: ")
        body = await self._reader.readexactly(int(length[: length.index(b"\r")]))
        if not head.startswith(b"http/1.1 200 "):
            raise UnexpectedAnswer((head + body).decode())
        return body

    async def close(self) -> None:
        """Close the connection."""
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
    """The results of a load: complete sessions, all response bodies, and the latencies (seconds)."""

    sessions: int = 0
    bodies: list[bytes] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0


async def drive(opened: Sequence[Connection], sessions: Iterable[Session], *, within: float) -> Load:
    """Run ``sessions`` over all connections concurrently; after ``within`` seconds, start no other.

    Each connection sends its next request when it has the response to the last, so the server is always busy, and the
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
