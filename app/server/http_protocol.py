"""One connection: reads one HTTP/1.1 request at a time, passes it to the application, and writes the response."""

import asyncio
import secrets
import ssl
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from app.api.problems import plain_problem
from app.server.connections import Connections, HttpLimits
from app.server.http_parser import CRLF, HEAD_END, NEVER_IN_HEAD, HttpError, parse_head
from app.server.http_request import STATUS_LINES, HttpRequest
from app.server.tls import TlsCodec, TlsError

_READ_BYTES = 16 * 1024


class HttpServer:
    """Makes the protocol of each connection, as the ``http`` option of uvicorn; holds what all of a process share.

    Each worker process makes its own from the same arguments, and reads the certificate again.
    """

    def __init__(self, limits: HttpLimits, *, cert_file: Path | None = None, key_file: Path | None = None) -> None:
        self._make = partial(HttpServer, limits, cert_file=cert_file, key_file=key_file)
        self.connections = Connections(limits)
        self.buffer = memoryview(bytearray(_READ_BYTES))  # shared, as its content is copied at once
        self.tls: ssl.SSLContext | None = None
        if cert_file:
            self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.tls.load_cert_chain(cert_file, key_file)
            self.tls.options |= ssl.OP_NO_RENEGOTIATION  # which a peer could use to exhaust the CPU

    def __reduce__(self) -> tuple[Any, ...]:
        """Allow uvicorn's supervisor to pass it to a worker process."""
        return self._make, ()

    def __call__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> "HttpProtocol":
        """Return the protocol of a new connection; called by uvicorn."""
        return HttpProtocol(self, config, server_state, app_state)


class HttpProtocol(asyncio.BufferedProtocol):
    """A connection, from its TLS handshake to its end.

    A request is parsed once the one before is answered. Of what the peer sends ahead, ``_data`` has at most one read;
    the rest stays in the kernel. So there is no queue of requests, and each answer belongs to its request.
    """

    def __init__(
        self, server: HttpServer, config: uvicorn.Config, state: ServerState, app_state: dict[str, Any]
    ) -> None:
        self.state = state
        self.loop = asyncio.get_running_loop()
        self.write_paused = False
        self.eof = False  # the peer has closed its side, but may still read
        self.connections = server.connections
        self._buffer = server.buffer
        self._limits = server.connections.limits
        self._tls = TlsCodec(server.tls) if server.tls else None
        self._app: ASGIApp = config.loaded_app
        self._app_state = app_state
        self._keep_alive_seconds = config.timeout_keep_alive
        self._data = b""
        self._searched = 0  # how many bytes of the data are known not to have the end of a head
        self._begun = True  # a request has begun, or is due because the connection is new
        self._is_stopping = False  # the next request is the last
        self._skipped_crlf = False
        self._read_paused = False
        self._request: HttpRequest | None = None
        self._linger_left: int | None = None  # how many bytes are still read and discarded before the close
        self._written = 0
        self._expected = 0  # how many bytes must be sent before the write deadline
        self._write_deadline: float | None = None
        self._deadline: float | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # of a TCP server
        """Begin to wait for a request."""
        self.transport = transport
        server, client = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "server": server[:2] if server else None,
            "client": client[:2] if client else None,
            "scheme": "https" if self._tls else "http",
        }
        self.state.connections.add(self)  # type: ignore[arg-type] # uvicorn's own classes are named there
        self.connections.add(self)
        self._set_deadline(self._limits.request_seconds)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason changes nothing
        """Notify the application that the client has gone."""
        self.state.connections.discard(self)
        self.connections.remove(self)
        self._data = b""
        if self._request:
            self._request.disconnect()

    def eof_received(self) -> bool:
        """Keep the connection if a complete request is being answered."""
        self.eof = True
        if self._request and self._request.is_complete:
            self._request.wake()
            return True
        return False

    def shutdown(self) -> None:
        """Close the connection after the next answer; called by uvicorn when it stops.

        An idle connection is kept for ``linger_seconds``: a request may be on its way, and its client could not know
        whether it was served.
        """
        self._is_stopping = True
        if self._request:
            self._request.keep_alive = False
        else:
            self._set_deadline(self._limits.linger_seconds)

    def drop(self, reason: str) -> None:
        """Close the connection at once, and lose what is not sent yet."""
        self.connections.report("http.connection_dropped", reason)
        self.connections.remove(self)
        self.transport.abort()

    def _close(self) -> None:
        """Close the connection once all is sent."""
        self._data = b""
        self._close_tls()
        self.transport.close()

    def _close_tls(self) -> None:
        if self._tls and not self.transport.is_closing():
            self._write_out(self._tls.close_notify())

    # Deadlines

    def _set_deadline(self, seconds: float) -> None:
        if self._is_stopping:
            seconds = min(seconds, self._limits.linger_seconds)
        self._deadline = self.loop.time() + seconds

    def check_deadlines(self, now: float) -> None:
        """Refuse or close the connection if a deadline has passed."""
        unsent = self.transport.get_write_buffer_size()
        sent = self._written - unsent
        if not unsent:
            self._write_deadline = None
        elif self._write_deadline is None or sent >= self._expected:
            self._write_deadline = now + self._limits.write_seconds
            self._expected = sent + min(unsent, self._limits.min_write_bytes)
        elif now >= self._write_deadline:
            self.drop("write")
        if self._deadline is None or now < self._deadline or self.transport.is_closing():
            return
        if self._tls and not self._tls.is_ready:
            self.drop("handshake")
        elif self._begun and self._linger_left is None:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._close()

    # Reading

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - a hint
        """Return the buffer to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Process what was read."""
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
            self._set_deadline(self._limits.request_seconds)
        if data:
            self._receive(data)
        if tls.eof and not self.eof and not self.eof_received():
            self._close()

    def _receive(self, data: bytes) -> None:
        """Process data of a request; while one is answered, keep the data and pause reading."""
        if self._linger_left is not None:
            self._linger_left -= len(data)
            if self._linger_left < 0:
                self._close()
            return
        self._data = self._data + data if self._data else data
        if self._request and self._request.is_complete:
            self._pause_reading()
        else:
            self._read()

    def _pause_reading(self) -> None:
        if not self._read_paused and not self.transport.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading if it was paused."""
        if self._read_paused:
            self._read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def _read(self) -> None:
        """Read a request, or more of its body, from the data; refuse what is invalid."""
        try:
            if self._request:
                self._read_body(self._request)
            else:
                self._read_request()
        except HttpError as error:
            self._refuse(error.status)

    def _read_request(self) -> None:
        """Begin the request at the start of the data, if its head is complete. Raise HttpError."""
        if not self._skipped_crlf and self._data.startswith(CRLF):
            self._skipped_crlf = True  # one is ignored before a request (RFC 9112, section 2.2)
            self._data = self._data[2:]
        if not self._data:
            return
        if not self._begun:
            self._begun = True
            self._set_deadline(self._limits.request_seconds)
        end = self._data.find(HEAD_END, max(0, self._searched - 3))
        if (end if end >= 0 else len(self._data)) > self._limits.head_bytes:
            raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if end < 0:
            if NEVER_IN_HEAD.search(self._data, max(0, self._searched - 1)):
                raise HttpError(HTTPStatus.BAD_REQUEST)
            self._searched = len(self._data)
            return
        head = parse_head(self._data[: end + 2], max_trailer_bytes=self._limits.head_bytes)
        self._data = self._data[end + 4 :]
        self._searched = 0
        path = head.path.decode("ascii")
        scope = {
            **self._scope,
            "http_version": "1.0" if head.is_http_1_0 else "1.1",
            "method": head.method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": head.path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self._app_state.copy(),
        }
        self._request = request = HttpRequest(self, head)
        if self._is_stopping:
            request.keep_alive = False
        self._read_body(request)
        task = self.loop.create_task(request.run(self._app, scope))
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)

    def _read_body(self, request: HttpRequest) -> None:
        body, self._data = request.head.body.read(self._data)
        request.add_body(body)
        if request.is_complete:
            self._deadline = None
            self.connections.waiting.pop(self, None)
            if self._data:
                self._pause_reading()
        elif len(request.unread) > self._limits.body_buffer_bytes:
            self._pause_reading()
        else:
            self.resume_reading()  # its head may have come with the request before

    # Writing

    def write(self, data: bytes) -> None:
        """Send data, encrypted if TLS is used, unless the connection is closing."""
        if not self.transport.is_closing():
            self._write_out(self._tls.encrypt(data) if self._tls else data)

    def _write_out(self, data: bytes) -> None:
        if data:
            self._written += len(data)
            self.transport.write(data)

    def pause_writing(self) -> None:
        """Pause the response until the peer has accepted what is written."""
        self.write_paused = True
        self.connections.waiting[self] = None

    def resume_writing(self) -> None:
        """Resume the response, or read the next request."""
        self.write_paused = False
        request = self._request
        if request:
            if request.is_complete:
                self.connections.waiting.pop(self, None)
            request.wake()
            if request.is_answered:
                self.answered(request)

    def answered(self, request: HttpRequest) -> None:
        """Read the next request after a response, or close the connection."""
        if request is not self._request or self.write_paused:
            return  # if paused, resume_writing calls this again
        self._request = None
        if not request.is_complete or (self._read_paused and not request.keep_alive):
            self._linger()
        elif not request.keep_alive:
            self._close()
        else:
            self._begun = self._skipped_crlf = False
            self.connections.waiting[self] = None
            self._set_deadline(self._keep_alive_seconds)
            if self._data:
                self._read()
            if not self._request:
                if self.eof:
                    self._close()
                else:
                    self.resume_reading()

    def fail(self, request: HttpRequest, status: HTTPStatus) -> None:
        """End the connection of a request without a complete response; before it began, with that status."""
        if request.is_started:
            self.transport.abort()
        elif not self.transport.is_closing():  # otherwise the client has gone
            self._refuse(status)

    def _refuse(self, status: HTTPStatus) -> None:
        """Send a problem, unless the application has begun to respond, and close the connection."""
        self.connections.report("http.request_rejected", f"{status.value}")
        request, self._request = self._request, None
        if request:
            request.disconnect()
        if not request or not request.is_started:
            problem = plain_problem(status, secrets.token_hex(8), {"Connection": "close"})
            head = CRLF.join([STATUS_LINES[status], *map(b": ".join, problem.raw_headers)])
            self.write(head + HEAD_END + bytes(problem.body))
        if not self.transport.is_closing():
            self._linger()

    def _linger(self) -> None:
        """Close the connection, but first read a limited amount of data (RFC 9112, section 9.6).

        Closing a socket with unread data resets the connection, and the peer may lose the response.
        """
        self._data = b""
        self._linger_left = self._limits.linger_bytes
        self.connections.waiting[self] = None
        self.state.connections.discard(self)  # so that uvicorn does not wait for it
        self._set_deadline(self._limits.linger_seconds)
        self.resume_reading()
        if self.eof:
            self._close()
        else:
            self._close_tls()
            self.transport.write_eof()
