"""Kept connections to a provider, on which the answer to one request is never taken for that of another.

In HTTP/1.1 only the order on a connection says which request an answer belongs to. So a connection is kept only after
an answer that ended where it should, is closed as soon as anything arrives unasked, and is looked at once more when it
is taken out: what waits in its socket, unread by the event loop, counts as well. No look shows what is still under way.
So a server that once sent something unasked gets a new connection for each request from then on.
"""

import asyncio
import logging
import re
import select
import ssl
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import cached_property
from http import HTTPStatus
from itertools import chain

import aiohttp
import httptools
import httpx
from aiohttp.abc import AbstractResolver
from aiohttp.connector import Connection
from yarl import URL

from app.outbound import Connector

log = logging.getLogger(__name__)

_KEEP_SECONDS = 4.0  # common servers close after five, and a request should not cross with that
_LONGEST_BODY = 64 * 1024  # bytes; the answers are a few hundred, and what is longer is cut off
_LONGEST_ANSWER = 2 * _LONGEST_BODY  # bytes, with its head and what frames its body
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})

_Origin = tuple[str, bytes]
_Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


class KeptConnections(httpx.AsyncBaseTransport):
    """Sends requests over kept connections. Connections are made by aiohttp; its errors say that none could be.

    There are never more of them than there were requests at once. A request is written once: one that crosses with the
    server closing the connection fails with ``httpx.ReadError`` or ``httpx.RemoteProtocolError``, as without an answer.

    ``tls`` verifies servers. ``proxy`` is ``http://[user:password@]host:port``; it makes tunnels, so it is for HTTPS
    only. ``resolver`` looks up the names of hosts; that of aiohttp by default.
    """

    def __init__(
        self, *, tls: ssl.SSLContext, proxy: str | None = None, resolver: AbstractResolver | None = None
    ) -> None:
        self._tls = tls
        self._proxy = URL(proxy) if proxy else None
        self._resolver = resolver
        self._idle: dict[_Origin, list[_Connection]] = {}  # the one that was used last at the end
        self._keeps = True

    @cached_property
    def _connector(self) -> Connector:
        """Makes connections, and keeps none. It needs the running loop."""
        return Connector(ssl=self._tls, resolver=self._resolver, limit=0, force_close=True)

    async def aclose(self) -> None:
        """Close the connections."""
        self._keep_none()
        await self._connector.close()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its answer. The time-out ``connect`` is for a connection, its address and TLS."""
        data, idle = _write(request), self._idle.setdefault((request.url.scheme, request.url.netloc), [])
        connection = None
        while idle and not connection:
            connection = idle.pop().reuse()
        if not connection:
            connection = await self._connect(request)
        status, headers, body = await connection.exchange(data)
        response = httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))
        if connection.is_clean and self._keeps:
            connection.keep(idle, _keep_seconds(find_header(headers, b"keep-alive")))
        else:
            connection.close()
        return response

    def _keep_none(self) -> None:
        """Close the idle connections, and each other one after its answer."""
        self._keeps = False
        for connection in chain.from_iterable(self._idle.values()):
            connection.close()
        self._idle.clear()

    def _distrust(self) -> None:
        """Keep no connections from now on, as the server sends what nobody asked for."""
        if self._keeps:
            Context().run(log.warning, "provider.unsolicited_data")  # of the connection, not of the present request
            self._keep_none()

    async def _connect(self, request: httpx.Request) -> "_Connection":
        """Make a connection. Raise an error of aiohttp, or UnsupportedProtocol, if none can be made."""
        seconds = request.extensions["timeout"]["connect"]
        url, loop = URL(str(request.url)), asyncio.get_running_loop()
        if self._proxy and url.scheme != "https":
            raise httpx.UnsupportedProtocol("through a proxy only https is spoken")
        wanted = aiohttp.ClientRequest("GET", url, loop=loop, proxy=self._proxy)
        limit = aiohttp.ClientTimeout(connect=seconds, sock_connect=seconds)
        try:
            opened = await self._connector.connect(wanted, [], limit)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        if opened.closed or (opened.protocol is not None and opened.protocol.should_close):
            opened.close()
            raise httpx.RemoteProtocolError("the server closed the new connection, or was the first to speak")
        return _Connection(opened, loop, self._distrust)


class _Connection(asyncio.Protocol):
    """A connection with one exchange at a time. Whatever arrives outside of one makes it unusable, and closes it."""

    def __init__(self, opened: Connection, loop: asyncio.AbstractEventLoop, distrust: Callable[[], None]) -> None:
        assert opened.protocol is not None  # noqa: S101 - it is open,
        assert opened.transport is not None  # noqa: S101 - so it has both
        self.is_clean = True  # open, and nothing has arrived but the answers to the requests before
        self._opened = opened
        self._aiohttp = opened.protocol
        self._transport = opened.transport
        self._loop = loop
        self._distrust = distrust
        self._unread = select.poll()
        self._unread.register(opened.transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._parser = httptools.HttpResponseParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._transport.set_protocol(self)

    def keep(self, idle: "list[_Connection]", seconds: float) -> None:
        """Wait among the idle connections for another request, and close if none comes in time."""
        idle.append(self)
        self._expiry = self._loop.call_later(seconds, self._expire, idle)

    def _expire(self, idle: "list[_Connection]") -> None:
        idle.remove(self)
        self.close()

    def reuse(self) -> "_Connection | None":
        """Return the connection if it is still clean, also by what the event loop has not read yet; else close it."""
        is_late = self._expiry.when() <= self._loop.time()
        self._expiry.cancel()
        if self.is_clean and not is_late and not self._transport.is_closing() and not self._unread.poll(0):
            return self
        self.close()
        return None

    def close(self) -> None:
        """Close the connection."""
        self.is_clean = False
        self._opened.close()

    async def exchange(self, request: bytes) -> _Answer:
        """Write a request, and return its answer. The connection is closed if there is none.

        Raise ReadError (the connection broke) or RemoteProtocolError (the answer is cut off, or not HTTP) of httpx.
        """
        self._answer: asyncio.Future[_Answer] = self._loop.create_future()
        self._bytes_left = _LONGEST_ANSWER
        self._is_in_body = self.is_clean = False
        self._transport.write(request)
        try:
            return await self._answer
        except (Exception, asyncio.CancelledError):
            self.close()
            raise

    def data_received(self, data: bytes) -> None:
        """Read a part of the answer."""
        self._bytes_left -= len(data)
        if self._answer.done():
            self.close()
            self._distrust()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(httpx.RemoteProtocolError(str(error)))
        if self._bytes_left <= 0:
            self._fail(httpx.RemoteProtocolError("the answer is too long"))

    def connection_lost(self, error: Exception | None) -> None:
        """Take the end of the connection for that of the answer, where nothing else says where it ends."""
        self._aiohttp.connection_lost(error)
        if error:
            self._fail(httpx.ReadError(type(error).__name__))
        elif self._is_in_body and _FRAMING.isdisjoint(name.lower() for name, _ in self._fields):
            self._finish()
        else:
            self._fail(httpx.RemoteProtocolError("the connection was closed before the end of the answer"))
        self.close()

    def on_message_begin(self) -> None:
        """Begin to read an answer (called by the parser, as the following)."""
        self.is_clean = False
        if self._answer.done():  # and this is a second one
            self._distrust()
        self._fields, self._body = [], bytearray()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header. Trailers are none (RFC 9110, section 6.5.1)."""
        if not self._is_in_body:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Read the end of the head."""
        self._is_in_body = True

    def on_body(self, data: bytes) -> None:
        """Read a part of the body."""
        self._body += data
        if len(self._body) >= _LONGEST_BODY:
            self._finish()

    def on_message_complete(self) -> None:
        """Finish the answer, unless it is an interim one (1xx) or comes second."""
        self._is_in_body = False
        is_interim = HTTPStatus.CONTINUE <= self._parser.get_status_code() < HTTPStatus.OK
        if not is_interim and not self._answer.done():
            self._finish()
            self.is_clean = self._parser.should_keep_alive() and self._parser.get_http_version() == "1.1"

    def _finish(self) -> None:
        if not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), self._fields, bytes(self._body)))

    def _fail(self, error: httpx.TransportError) -> None:
        self.is_clean = False
        if not self._answer.done():
            self._answer.set_exception(error)


def _write(request: httpx.Request) -> bytes:
    """Return a request as it is sent. Raise ValueError if its head would be read as another."""
    lines = [
        b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path),
        b"Host: %b" % request.url.netloc,
        *[b"%b: %b" % field for field in request.headers.raw],
    ]
    if request.content:
        lines.append(b"Content-Length: %d" % len(request.content))
    head = b"\r\n".join(lines)
    if len(head.splitlines()) != len(lines):
        raise ValueError("a line break in the head of a request")
    return b"%b\r\n\r\n%b" % (head, request.content)


def find_header(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """Return a header by its name in lower case, or "". httpx would look for the encoding of all headers first."""
    return b", ".join([value for key, value in fields if key.lower() == name]).decode("latin-1")


def _keep_seconds(header: str) -> float:
    """Return how long to keep a connection: shorter than the server says by ``Keep-Alive: timeout=5``."""
    announced = re.search(r"timeout=([0-9]{1,9})", header)
    return min(_KEEP_SECONDS, int(announced[1]) - 1) if announced else _KEEP_SECONDS
