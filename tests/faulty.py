"""Servers that simulate failing providers: each has one fault, on a real port, for requests to place a call.

Other requests (balance, call status) are answered correctly if they reach the server.
"""

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import trustme

CALL = b"POST /api/v1/flash-call/call "
PLACED = b'{"success": true, "data": {"call_id": "call-1"}}'
PAGE = b"<html><body>Oops</body></html>"
# No name can be this long, so the system's resolver fails without asking a name server.
NO_NAME = "a." * 130 + "invalid"

asking = ContextVar[object]("asking", default=None)
"""The provider that the current task calls: several run concurrently, and only one of them is meant."""


@dataclass
class Provider:
    """A simulated provider: the number of complete requests for a call, and the codes of placed calls."""

    url: str = ""
    requests: int = 0
    heard: list[str] = field(default_factory=list)


class Conversation:
    """A connection on which a call was requested."""

    def __init__(
        self, provider: Provider, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pin: str = ""
    ) -> None:
        self._provider = provider
        self._reader = reader
        self._writer = writer
        self._pin = pin

    def ring(self) -> None:
        """Place the call: from now on its code is known to a person."""
        self._provider.heard.append(self._pin)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, body: bytes, *, status: str = "200 OK", headers: str = "") -> None:
        await self.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)

    async def wait_until_left(self) -> None:
        while await self._reader.read(4096):
            pass

    def reset(self) -> None:
        """Close with RST in place of FIN, as a crashed peer or a firewall does."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Script = Callable[[Conversation], Awaitable[None]]
Playing = Callable[[], AbstractAsyncContextManager[Provider]]


class _FaultyServer:
    """Run ``unread`` for each connection before anything is read, or ``script`` once a call is requested."""

    def __init__(self, provider: Provider, script: Script | None, unread: Script | None) -> None:
        self._provider = provider
        self._script = script
        self._unread = unread
        self._conversations: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._conversations.add(asyncio.create_task(self._converse(reader, writer)))

    async def stop(self) -> None:
        for task in self._conversations:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                await self._play(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._unread:
            await self._unread(Conversation(self._provider, reader, writer))
            return
        head, body = await _read_request(reader)
        if head.startswith(CALL) and self._script:
            self._provider.requests += 1
            await self._script(Conversation(self._provider, reader, writer, json.loads(body)["pin"]))
        else:
            known = b'{"success": true, "data": {"status": "ringing"}, "balance": 500}'
            await Conversation(self._provider, reader, writer).answer(known)


async def _read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head, await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)


def _bound() -> tuple[socket.socket, str]:
    """Return a socket bound to a free port, not listening yet, and its address."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound, f"127.0.0.1:{bound.getsockname()[1]}"


def listening(script: Script | None = None, *, unread: Script | None = None, tls: bool = False) -> Playing:
    """Accept connections; with ``tls`` using a certificate of an untrusted CA."""

    @asynccontextmanager
    async def play() -> AsyncIterator[Provider]:
        bound, address = _bound()
        provider = Provider(f"{'https' if tls else 'http'}://{address}")
        server = _FaultyServer(provider, script, unread)
        async with await asyncio.start_server(server.accept, sock=bound, ssl=_untrusted_tls() if tls else None):
            yield provider
            await server.stop()

    return play


def no_tls(unread: Script) -> Playing:
    """Have an https URL, but run ``unread`` in place of TLS."""

    @asynccontextmanager
    async def play() -> AsyncIterator[Provider]:
        async with listening(unread=unread)() as provider:
            provider.url = provider.url.replace("http:", "https:")
            yield provider

    return play


@asynccontextmanager
async def refusing() -> AsyncIterator[Provider]:
    """Have a port that refuses connections."""
    bound, address = _bound()
    with bound:
        yield Provider(f"http://{address}")


@asynccontextmanager
async def nameless() -> AsyncIterator[Provider]:
    """Have a name without an address."""
    yield Provider(f"https://{NO_NAME}")


@asynccontextmanager
async def unaccepting() -> AsyncIterator[Provider]:
    """Have a full accept queue: the kernel drops connection requests, as a firewall does."""
    bound, address = _bound()
    with bound, contextlib.ExitStack() as waiting:
        bound.listen(0)
        with contextlib.suppress(OSError):
            while True:  # its size depends on the kernel
                caller = waiting.enter_context(socket.socket())
                caller.setblocking(False)  # noqa: FBT003 - the library's signature
                caller.connect_ex(bound.getsockname())
                await asyncio.sleep(0.1)
                caller.getpeername()  # an error: not connected
        yield Provider(f"http://{address}")


def opening_after_one_refusal(script: Script) -> Playing:
    """Start to listen when the client logs that its first connection for this call failed."""

    @asynccontextmanager
    async def play() -> AsyncIterator[Provider]:
        bound, address = _bound()
        provider = Provider(f"http://{address}")
        server = _FaultyServer(provider, script, None)
        opened: list[asyncio.Task[asyncio.Server]] = []

        class Opener(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.msg == "plusofon.not_reached" and asking.get() is provider and not opened:
                    opened.append(asyncio.create_task(asyncio.start_server(server.accept, sock=bound)))

        opener, logger = Opener(), logging.getLogger("app.providers.http")
        logger.addHandler(opener)
        try:
            yield provider
        finally:
            logger.removeHandler(opener)
            for task in opened:
                (await task).close()
            await server.stop()
            bound.close()

    return play


def _untrusted_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


# Faults before anything is read.


async def resets(conversation: Conversation) -> None:
    conversation.reset()


async def says_nothing(conversation: Conversation) -> None:
    await conversation.wait_until_left()


# Faults after a call was requested.


def says_no(body: bytes, status: str = "200 OK", headers: str = "") -> Script:
    """Send this response without placing the call."""

    async def play(conversation: Conversation) -> None:
        await conversation.answer(body, status=status, headers=headers)

    return play


def rings_and_says(body: bytes, status: str = "200 OK", headers: str = "") -> Script:
    """Place the call, and send this response."""

    async def play(conversation: Conversation) -> None:
        conversation.ring()
        await conversation.answer(body, status=status, headers=headers)

    return play


def rings_and_sends(*parts: bytes, pause: float = 0, then: Script | None = None) -> Script:
    """Place the call, and send these bytes with a pause before each; then run ``then`` or close."""

    async def play(conversation: Conversation) -> None:
        conversation.ring()
        for part in parts:
            await asyncio.sleep(pause)
            await conversation.send(part)
        if then:
            await then(conversation)

    return play


def sends_for_ever(part: bytes) -> Script:
    """Send the same bytes repeatedly, each time within any read timeout."""

    async def play(conversation: Conversation) -> None:
        while True:
            await conversation.send(part)
            await asyncio.sleep(0.05)

    return play


def gzip_bomb(size: int) -> bytes:
    """Compress ``size`` blanks, about a thousand to one."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return b"".join(deflate.compress(b" " * 1_000_000) for _ in range(size // 1_000_000)) + deflate.flush()
