"""One request and its response, between the application (ASGI) and the connection."""

import asyncio
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Scope

from app.server.http_parser import CRLF, HEAD_END, RequestHead

if TYPE_CHECKING:
    from app.server.http_protocol import HttpProtocol

log = logging.getLogger(__name__)

STATUS_LINES = {status.value: b"HTTP/1.1 %d %s" % (status, status.phrase.encode()) for status in HTTPStatus}
_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_DISCONNECT: Message = {"type": "http.disconnect"}


class HttpRequest:
    """One request, from its head to the end of its response.

    ``is_complete``: the body has been received. ``is_started``, ``is_answered``: the response was begun, and ended.
    """

    is_complete = False
    is_started = False
    is_answered = False
    unread = b""
    _is_delivered = False
    _is_disconnected = False
    _changed: asyncio.Event | None = None  # made by the first wait, as it costs 2 µs and few requests wait
    _unsent_head = b""
    _has_body = True
    _is_chunked = False
    _left: int | None = None  # bytes of the response still to come, if it has a Content-Length

    def __init__(self, protocol: "HttpProtocol", head: RequestHead) -> None:
        self.head = head
        self.keep_alive = head.keep_alive
        self._must_send_continue = head.expects_continue
        self._protocol = protocol

    def add_body(self, body: bytes) -> None:
        """Add received data to the body."""
        self.unread = self.unread + body if self.unread else body
        self.is_complete = self.head.body.is_complete
        self.wake()

    def disconnect(self) -> None:
        """Notify the application that the client has gone."""
        self._is_disconnected = True
        self.wake()

    def wake(self) -> None:
        """Wake the application if it waits for a change."""
        if self._changed:
            self._changed.set()

    async def _change(self) -> None:
        self._changed = self._changed or asyncio.Event()
        self._changed.clear()
        await self._changed.wait()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application; without a complete response the connection fails."""
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            log.exception("http.application_failed")
        except asyncio.CancelledError:  # the process stops, and waits no longer
            status = HTTPStatus.SERVICE_UNAVAILABLE
            raise
        except GeneratorExit:  # the event loop was closed, and the connection with it
            self._is_disconnected = True
            raise
        finally:
            if not self.is_answered and not self._is_disconnected:
                self._is_disconnected = True
                self._protocol.fail(self, status)

    async def receive(self) -> Message:
        """Return the next part of the body; after the last one, wait until the client disconnects."""
        while not self._is_disconnected and not self.is_answered:
            if self.unread or (self.is_complete and not self._is_delivered):
                body, self.unread = self.unread, b""
                self._is_delivered = self.is_complete
                if not self.is_complete:
                    self._protocol.resume_reading()
                return {"type": "http.request", "body": body, "more_body": not self.is_complete}
            if self._protocol.eof:
                break
            if self._must_send_continue and not self.is_complete and not self.is_started:
                self._must_send_continue = False
                self._protocol.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._change()
        return _DISCONNECT

    async def send(self, message: Message) -> None:
        """Send the next part of the response, once the peer has accepted what was sent before.

        Raises RuntimeError: the messages violate ASGI, or do not match the headers.
        """
        while self._protocol.write_paused and not self._is_disconnected:
            await self._change()
        if self._is_disconnected:
            return
        if self.is_answered or (message["type"] == "http.response.start") is self.is_started:
            raise RuntimeError(f"unexpected message: {message['type']}")
        if self.is_started:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            self._start(message["status"], message.get("headers", ()))

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the head, which is sent with the first part of the body."""
        self.is_started = True
        self._has_body = self.head.method != "HEAD" and status not in _WITHOUT_BODY
        headers = [*self._protocol.state.default_headers, *headers]
        fields = dict(headers)
        if b"content-length" in fields:
            self._left = int(fields[b"content-length"])
        if b"connection" in fields:
            self.keep_alive = self.keep_alive and fields[b"connection"].lower() != b"close"
            headers = [header for header in headers if header[0] != b"connection"]
        lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status, *map(b": ".join, headers)]
        if self._has_body and self._left is None:
            if self.head.is_http_1_0:  # without chunks, so the end of the connection ends the body
                self.keep_alive = False
            else:
                self._is_chunked = True
                lines.append(b"transfer-encoding: chunked")
        self.keep_alive = self.keep_alive and self.is_complete and not self._protocol.connections.are_scarce
        if not self.keep_alive:
            lines.append(b"connection: close")
        self._unsent_head = head = CRLF.join(lines) + HEAD_END
        if not head.count(b"\n") == head.count(b"\r") == len(lines) + 1:
            raise RuntimeError("a header has a line break")

    def _send_body(self, body: bytes, *, more: bool) -> None:
        data, self._unsent_head = self._unsent_head, b""
        if self._is_chunked:
            if body:
                data += b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                data += b"0\r\n\r\n"
        elif self._has_body:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError("the body does not have the length of Content-Length")
            data += body
        if data:
            self._protocol.write(data)
        if not more:
            self.is_answered = True
            self.wake()
            self._protocol.answered(self)
