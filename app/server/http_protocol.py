"""One connection: reads one HTTP/1.1 request at a time, hands it to the application (ASGI), and writes the answer."""

import asyncio
import secrets
import ssl
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.server import ServerState

from app.api.problems import plain_problem
from app.server.connections import Connections, HttpLimits
from app.server.http_parser import CRLF, HEAD_END, HttpError, RequestHead, check_unfinished_head, parse_head
from app.server.http_request import STATUS_LINES, HttpRequest
from app.server.tls import TlsCodec, TlsError

_READ_BYTES = 16 * 1024


class HttpServer:
    """Makes the protocol of each connection: the ``http`` option of uvicorn.

    It keeps what the connections of a process share. Each worker process makes its own from the same arguments, and so
    reads the certificate anew.
    """

    def __init__(
        self, *, limits: HttpLimits | None = None, cert_file: Path | None = None, key_file: Path | None = None
    ) -> None:
        self._make = partial(HttpServer, limits=limits, cert_file=cert_file, key_file=key_file)
        self.connections = Connections(limits or HttpLimits())
        self.buffer = memoryview(bytearray(_READ_BYTES))  # for all: what is read is copied out of it at once
        self.tls: ssl.SSLContext | None = None
        if cert_file:
            self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.tls.load_cert_chain(cert_file, key_file)
            self.tls.options |= ssl.OP_NO_RENEGOTIATION  # work for the server that a peer can ask for at will

    def __reduce__(self) -> tuple[Any, ...]:
        """Let uvicorn's supervisor hand it to a worker process."""
        return self._make, ()

    def __call__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> "HttpProtocol":
        """Make the protocol of a new connection, as uvicorn calls it."""
        return HttpProtocol(self, config, server_state, app_state)


class HttpProtocol(asyncio.BufferedProtocol):
    """A connection, from its TLS handshake to its end.

    A request is read when the one before is answered: what a peer sends ahead waits in ``_data``, at most one read of
    it, and then in the kernel. So each answer belongs to its request, and nothing is kept for requests in a queue.
    """

    def __init__(
        self, server: HttpServer, config: uvicorn.Config, state: ServerState, app_state: dict[str, Any]
    ) -> None:
        self.state = state
        self.loop = asyncio.get_running_loop()
        self.write_paused = False
        self.eof = False  # the peer sends nothing more, but may still read
        self.connections = server.connections
        self._buffer = server.buffer
        self._limits = server.connections.limits
        self._tls = TlsCodec(server.tls) if server.tls else None
        self._app: ASGIApp = config.loaded_app
        self._app_state = app_state
        self._root_path = config.root_path
        self._keep_alive_seconds = config.timeout_keep_alive
        self._data = b""
        self._looked_at = 0  # how much of the data is known not to have the end of a head
        self._begun = True  # a request is due, not just possible: a new connection is there to ask
        self._is_stopping = False  # the next request is the last
        self._skipped_crlf = False
        self._read_paused = False
        self._request: HttpRequest | None = None
        self._lingering: int | None = None  # how many bytes are still read and discarded before the close
        self._written = 0
        self._expected = 0  # how much of it has to be sent until the deadline
        self._write_deadline: float | None = None
        self._deadline: float | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # of a TCP server
        """Wait for a request."""
        self.transport = transport
        server, client = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "server": server[:2] if server else None,
            "client": client[:2] if client else None,
            "scheme": "https" if self._tls else "http",
            "root_path": self._root_path,
        }
        self.state.connections.add(self)  # type: ignore[arg-type] # uvicorn's own classes are named there
        self.connections.add(self)
        self._wait(self._limits.request_seconds)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason changes nothing
        """Tell the application, whose answer nobody takes any more."""
        self.state.connections.discard(self)
        self.connections.remove(self)
        self._data = b""
        if self._request:
            self._request.disconnect()

    def eof_received(self) -> bool:
        """Keep the connection for the answer to what was asked; without a whole request it ends."""
        self.eof = True
        if self._request and self._request.is_whole:
            self._request.wake()
            return True
        return False

    def shutdown(self) -> None:
        """Close the connection with its next answer; uvicorn calls it when it is told to stop.

        One that is idle is kept for a moment: a request may be on its way, and its client could not tell whether it was
        served.
        """
        self._is_stopping = True
        if self._request:
            self._request.keep_alive = False
        else:
            self._wait(self._limits.linger_seconds)

    def drop(self, reason: str) -> None:
        """Close the connection at once; what is not sent yet is lost."""
        self.connections.report("http.connection_dropped", reason)
        self.connections.remove(self)
        self.transport.abort()

    def _close(self) -> None:
        """Close the connection when all is sent."""
        self._data = b""
        self._say_goodbye()
        self.transport.close()

    def _say_goodbye(self) -> None:
        if self._tls and not self.transport.is_closing():
            self._write_out(self._tls.goodbye())

    # Deadlines

    def _wait(self, seconds: float) -> None:
        if self._is_stopping:
            seconds = min(seconds, self._limits.linger_seconds)
        self._deadline = self.loop.time() + seconds

    def check(self, now: float) -> None:
        """Act on a deadline that has passed."""
        if unsent := self.transport.get_write_buffer_size():
            self._check_write(now, unsent)
        else:
            self._write_deadline = None
        if self._deadline is None or now < self._deadline or self.transport.is_closing():
            return
        if self._tls and not self._tls.is_ready:
            self.drop("handshake")
        elif self._begun and self._lingering is None:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._close()

    def _check_write(self, now: float, unsent: int) -> None:
        """Drop a peer that takes what it is sent too slowly, or not at all."""
        sent = self._written - unsent
        if self._write_deadline is None or sent >= self._expected:
            self._write_deadline = now + self._limits.write_seconds
            self._expected = sent + min(unsent, self._limits.min_write_bytes)
        elif now >= self._write_deadline:
            self.drop("write")

    # Reading

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - a hint
        """Lend the buffer to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        data = bytes(self._buffer[:nbytes])
        if not self._tls:
            self._receive(data)
        elif not self.transport.is_closing():
            self._tls_received(self._tls, data)

    def _tls_received(self, tls: TlsCodec, data: bytes) -> None:
        was_ready = tls.is_ready
        try:
            data = tls.decrypt(data)
        except TlsError:
            self._write_out(tls.pending())
            self.transport.close()
            self.connections.report("http.connection_dropped", "tls")
            return
        self._write_out(tls.pending())
        if tls.is_ready and not was_ready:
            self._wait(self._limits.request_seconds)
        if data:
            self._receive(data)
        if tls.eof and not self.eof and not self.eof_received():
            self._close()

    def _receive(self, data: bytes) -> None:
        """Take more of a request; while one is answered, keep it for later and read no further."""
        if self._lingering is not None:
            self._lingering -= len(data)
            if self._lingering < 0:
                self._close()
            return
        self._data = self._data + data if self._data else data
        if not self._request:
            self._read_request()
        elif self._request.is_whole:
            self._pause_reading()
        else:
            self._read_body(self._request)

    def _pause_reading(self) -> None:
        if not self._read_paused and not self.transport.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, where that was paused."""
        if self._read_paused:
            self._read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def _read_request(self) -> None:
        """Begin the request at the start of the data, if its head is whole."""
        if not self._skipped_crlf and self._data.startswith(CRLF):
            self._skipped_crlf = True  # one may come before a request (RFC 9112, section 2.2)
            self._data = self._data[2:]
        if not self._data:
            return
        if not self._begun:
            self._begun = True
            self._wait(self._limits.request_seconds)
        end = self._data.find(HEAD_END, max(0, self._looked_at - 3))
        try:
            if (end if end >= 0 else len(self._data)) > self._limits.head_bytes:
                raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)  # noqa: TRY301 - one place refuses
            if end < 0:
                check_unfinished_head(self._data, max(0, self._looked_at - 1))
                self._looked_at = len(self._data)
                return
            head = parse_head(self._data[: end + 2], max_trailer_bytes=self._limits.head_bytes)
        except HttpError as error:
            self._refuse(error.status)
            return
        self._data = self._data[end + 4 :]
        self._looked_at = 0
        self._request = request = HttpRequest(self, head, self._scope_of(head))
        if self._is_stopping:
            request.keep_alive = False
        self._read_body(request)
        if request is self._request:  # and was not refused for its body
            task = self.loop.create_task(request.run(self._app))
            self.state.tasks.add(task)
            task.add_done_callback(self.state.tasks.discard)

    def _scope_of(self, head: RequestHead) -> Scope:
        path = head.path.decode("ascii")
        return {
            **self._scope,
            "http_version": "1.0" if head.is_http_1_0 else "1.1",
            "method": head.method,
            "path": self._root_path + (unquote(path) if "%" in path else path),
            "raw_path": self._root_path.encode("ascii") + head.path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self._app_state.copy(),
        }

    def _read_body(self, request: HttpRequest) -> None:
        try:
            body, self._data = request.head.body.read(self._data)
        except HttpError as error:
            self._refuse(error.status)
            return
        request.add_body(body)
        if request.is_whole:
            self._deadline = None
            self.connections.waiting.pop(self, None)
            if self._data:
                self._pause_reading()
        elif len(request.unread) > self._limits.body_buffer_bytes:
            self._pause_reading()

    # Writing

    def write(self, data: bytes) -> None:
        """Send data, unless the connection is closing."""
        if not self.transport.is_closing():
            self._write_out(self._tls.encrypt(data) if self._tls else data)

    def _write_out(self, data: bytes) -> None:
        if data:
            self._written += len(data)
            self.transport.write(data)

    def pause_writing(self) -> None:
        """Wait for the peer to take what is written, before anything more is."""
        self.write_paused = True
        self.connections.waiting[self] = None

    def resume_writing(self) -> None:
        """Go on with the answer, or with the next request."""
        self.write_paused = False
        request = self._request
        if request:
            if request.is_whole:
                self.connections.waiting.pop(self, None)
            request.wake()
            if request.is_answered:
                self.answered(request)

    def answered(self, request: HttpRequest) -> None:
        """Go on after an answer: with the next request, or with the end of the connection."""
        if request is not self._request or self.write_paused:
            return  # in the latter case: when the peer has taken it
        self._request = None
        if not request.is_whole or (self._read_paused and not request.keep_alive):
            self._linger()
        elif not request.keep_alive:
            self._close()
        else:
            self._begun = self._skipped_crlf = False
            self.connections.waiting[self] = None
            self._wait(self._keep_alive_seconds)
            if self._data:
                self._read_request()
            if not self._request:
                if self.eof:
                    self._close()
                else:
                    self.resume_reading()

    def fail(self, request: HttpRequest) -> None:
        """Break off where the application left without a whole answer."""
        if request.is_started:
            self.transport.abort()
        elif not self.transport.is_closing():  # else it left because the client had
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer in the application's place, unless it has begun to, and close the connection."""
        self.connections.report("http.request_rejected", f"{status.value}")
        request, self._request = self._request, None
        if request:
            request.disconnect()
        if not request or not request.is_started:
            self.write(_problem(status))
        if not self.transport.is_closing():
            self._linger()

    def _linger(self) -> None:
        """Close the connection, but take in a little of what is on its way.

        Closing a socket with unread data resets the connection, and the peer may lose the answer that tells it why.
        """
        self._data = b""
        self._lingering = self._limits.linger_bytes
        self.connections.waiting[self] = None
        self.state.connections.discard(self)  # uvicorn need not wait for it
        self._wait(self._limits.linger_seconds)
        self.resume_reading()
        if self.eof:
            self._close()
        else:
            self._say_goodbye()
            self.transport.write_eof()


def _problem(status: HTTPStatus) -> bytes:
    """Return a whole answer with a problem (RFC 9457), after which the connection is closed."""
    problem = plain_problem(status, secrets.token_hex(8), {"Connection": "close"})
    head = [STATUS_LINES[status], *(b"%b: %b\r\n" % header for header in problem.raw_headers)]
    return b"".join([*head, CRLF, bytes(problem.body)])
