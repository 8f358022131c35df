"""One request and its response at the HTTP edge: its id, fields, client and outcome, and its line in the log."""

import logging
import random
import re
import time
from functools import cache
from http import HTTPStatus

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.problem_types import MAX_BODY_KIB
from app.container import Container
from app.verification import log_context

requests = structlog.get_logger()  # past the standard library, by which a line would cost four times as much

CLIENT_CLOSED_REQUEST = 499  # for the log alone, as nginx has it

_PROBES = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # of a caller; another one may not go into a log

# OWASP REST Security Cheat Sheet; a page that needs more sets its own.
_SECURITY_HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"strict-transport-security": b"max-age=63072000",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}


class Exchange:
    """One request and its response.

    ``client`` and ``outcome`` (the slug of a problem) are set by what answers the request. ``body`` is what was read of
    it. ``status`` is 0 until the response begins.
    """

    client: str | None = None
    outcome: str | None = None
    body = b""
    status = 0
    _answered_after = 0.0
    _received = 0
    _is_ended = False

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._began = time.perf_counter()
        self._receive, self._send = receive, send
        self.path, self.path_prefix = scope["path"], scope.get("root_path", "")
        self.container: Container = scope.get("state", {}).get("container")
        self._fields = dict(scope["headers"])
        if len(self._fields) < len(scope["headers"]):  # those of one name are one list (RFC 9110, section 5.3)
            values: dict[bytes, list[bytes]] = {}
            for name, value in scope["headers"]:
                values.setdefault(name, []).append(value)
            self._fields = {name: b", ".join(found) for name, found in values.items()}
        given = self.header(b"x-request-id")
        self.request_id = given if given and _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
        log_context.begin(request_id=self.request_id)
        self.method = scope["method"]
        if self.method == "HEAD":  # answered as GET is, without the body (RFC 9110, section 9.3.2)
            scope["method"] = "GET"

    def header(self, name: bytes) -> str | None:
        """Return the value of a field, whose name is in lower case, or None."""
        value = self._fields.get(name)
        return None if value is None else value.decode("latin-1")

    async def read(self) -> bytes:
        """Read the body. Raises ClientDisconnect, or HTTPException if it is too large."""
        while (message := await self.receive())["type"] == "http.request":
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                return self.body
        raise ClientDisconnect

    async def receive(self) -> Message:
        """Stop reading a body that grows too large, whatever its ``Content-Length`` says."""
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > MAX_BODY_KIB * 1024:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return message

    async def send(self, message: Message) -> None:
        """Add headers to the response; end that to a HEAD at the first part of its body: a stream may have no end."""
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"])
        elif self.method == "HEAD":
            if self._is_ended:
                return
            self._is_ended, message = True, {"type": "http.response.body"}
        await self._send(message)

    async def respond(self, response: Response) -> None:
        """Send a response whose body is complete; the server leaves it out for a HEAD."""
        self._begin(response.status_code, response.raw_headers)
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": response.body})

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status, self._answered_after = int(status), time.perf_counter() - self._began
        own = _SECURITY_HEADERS.keys() & dict(headers)
        headers.append((b"x-request-id", self.request_id.encode()))
        headers += [header for header in _SECURITY_HEADERS.items() if header[0] not in own]

    def log(self, scope: Scope) -> None:
        """Count the request, and log it with the template of its route: its path may have a phone number.

        The time until the response began is counted: that of an event stream has no meaning.
        """
        seconds = time.perf_counter() - self._began
        route = getattr(scope.get("route"), "path", None)
        outcome = self.outcome or _outcome(self.status)
        if self.container:
            answered_after = self._answered_after or seconds
            self.container.metrics.request_handled(self.method, route, self.status, outcome, answered_after)
        trace_id = scope.get("state", {}).get("trace_id")
        is_probe = route in _PROBES and self.status != HTTPStatus.UNAUTHORIZED
        level = logging.DEBUG if is_probe else logging.INFO
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            level = logging.WARNING
        requests.bind().log(  # by ``bind``: each other attribute is looked up through three calls
            level,
            "request.handled",
            logger=__name__,
            client=self.client,
            method=self.method,
            route=route,
            status=self.status,
            outcome=outcome,
            duration_ms=round(seconds * 1000, 1),
            **({"trace_id": trace_id} if trace_id else {}),
        )


@cache
def _outcome(status: int) -> str:
    """Return the outcome of a response that is no problem with a slug."""
    if status in {0, CLIENT_CLOSED_REQUEST}:
        return "broken-off"
    return "ok" if status < HTTPStatus.BAD_REQUEST else f"http-{status}"
