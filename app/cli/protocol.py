"""How the server speaks HTTP: uvicorn's protocol, with bounds on what arrives before the application sees any of it."""

import asyncio
import secrets
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.problems import plain_problem


class BoundedHttp(HttpToolsProtocol):
    """A connection that nobody can keep, or fill the memory through, by never finishing a request.

    A request is whole within ``request_seconds``, its body included, and what brings no byte of a body (its head, the
    trailers of a chunked one) has at most ``head_bytes``; else it is answered 408 or 431 and the connection is closed.
    Requests that wait for the answer to the one before are read no further. uvicorn bounds none of this, and leaves it
    to a proxy in front.

    A TLS connection that this side has closed is gone ``goodbye_seconds`` after the last byte was taken: a peer with an
    idle connection in a pool does not read, and so never answers the goodbye that closing waits for (RFC 8446,
    section 6.1).
    """

    head_bytes = 64 * 1024
    request_seconds = 10.0
    goodbye_seconds = 1.0

    _is_whole = False
    _had_body = False
    _received = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Wait for a first request, but not for ever."""
        super().connection_made(transport)
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what came; where it is no whole request yet, see that it becomes one."""
        self._had_body = False
        super().data_received(data)
        if self._is_whole:
            self._keep_alive_no_longer_than_before()
            return
        self._received = 0 if self._had_body else self._received + len(data)
        if self._received > self.head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._deadline is None:
            self._start_deadline()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_whole, self._received = False, 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """Some of its body has come."""
        self._had_body = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        self._is_whole = True
        self._stop_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It was answered."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()  # which uvicorn resumes with every answer
        self._part()

    def shutdown(self) -> None:
        """Close the connection, once a request in progress is answered."""
        super().shutdown()
        self._part()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing was asked for a while."""
        super().timeout_keep_alive_handler()
        self._part()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the status says it
        """Tell that this is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST)

    def _keep_alive_no_longer_than_before(self) -> None:
        """Wait for the next request as before, where what came began none: uvicorn has stopped the clock."""
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.request_seconds, self._refuse, HTTPStatus.REQUEST_TIMEOUT)

    def _stop_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer in the application's place, unless it has begun to, and close the connection."""
        if not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                self.transport.write(_answer(status))
            self.transport.close()
        self._part()

    def _part(self) -> None:
        if self.transport.is_closing() and self.scheme == "https":
            self.loop.call_later(self.goodbye_seconds, self._hang_up)

    def _hang_up(self) -> None:
        if self not in self.connections:
            return
        if self.transport.get_write_buffer_size():  # the peer still takes an answer
            self._part()
        else:
            self.transport.abort()


def _answer(status: HTTPStatus) -> bytes:
    """Write a problem down as HTTP/1.1."""
    problem = plain_problem(status, secrets.token_hex(8), {"Connection": "close"})
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in problem.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(problem.body)])
