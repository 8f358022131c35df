"""A test application behind the service's HTTP protocol on a loopback port, and a client that sends arbitrary bytes."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trustme
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from app.server.connections import Connections, HttpLimits
from app.server.http_protocol import HttpServer
from tests.waiting import PATIENCE, timing, until

HASTY = HttpLimits(
    head_bytes=4096,
    request_seconds=0.3,
    write_seconds=0.2,
    linger_seconds=0.1,
    check_seconds=0.02,
)
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Echo:
    """Respond with the length of the complete body, and record the requests."""

    asked: list[Scope] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    answer_bytes: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        answer = b"x" * self.answer_bytes or str(len(body)).encode()
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@dataclass
class Served:
    """A running server: ``state`` is uvicorn's, ``connections`` is the service's."""

    state: ServerState
    connections: Connections
    port: int
    trust: ssl.SSLContext | None
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, *, plain: bool = False) -> Peer:
        """Connect, over TLS if the server has it unless ``plain``; the connection is closed with the server."""
        named = {"ssl": self.trust, "server_hostname": "localhost"} if self.trust and not plain else {}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **named)  # type: ignore[arg-type]
        self.writers.append(writer)
        return reader, writer

    async def ask(self, *parts: bytes) -> bytes:
        """Send each part in its own packet, and read until the server closes the connection."""
        reader, writer = await self.connect()
        try:
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.005)
            async with asyncio.timeout(PATIENCE):
                return await reader.read()
        finally:
            writer.close()

    async def until_none_is_open(self) -> None:
        async with timing() as seconds:
            await until(lambda: not self.connections.all)
            assert seconds() < 5  # not only once a request is late


@asynccontextmanager
async def served(
    app: ASGIApp, *, limits: HttpLimits = HASTY, keep_alive: int = 1, certificate: Path | None = None
) -> AsyncIterator[Served]:
    """Serve an app; over TLS if a folder for its certificate is given."""
    config = uvicorn.Config(
        app, ws="none", lifespan="off", log_config=None, access_log=False, timeout_keep_alive=keep_alive
    )
    config.load()
    state, trust = ServerState(), None
    if certificate:
        authority, trust = trustme.CA(), ssl.create_default_context()
        authority.configure_trust(trust)
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate / "all.pem")
        certificate /= "all.pem"
    http = HttpServer(limits, cert_file=certificate, key_file=certificate)
    server = await asyncio.get_running_loop().create_server(lambda: http(config, state, {}), "127.0.0.1", 0)
    it = Served(state, http.connections, server.sockets[0].getsockname()[1], trust)
    try:
        yield it
    finally:
        server.close()
        for connection in list(http.connections.all):
            connection.drop("test")
        for writer in it.writers:
            writer.transport.abort()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await asyncio.sleep(0.05)


def statuses(answer: bytes) -> list[int]:
    """Return the status code of each response in a stream of responses."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def lenient_limits(**changes: float) -> HttpLimits:
    """Return limits that no test reaches, except for the given ones."""
    return replace(HttpLimits(check_seconds=0.02), **changes)  # type: ignore[arg-type]
