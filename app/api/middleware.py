"""The middleware of every request: its id, a limit of its body, security headers, the answer 500, and a log line."""

import logging
import re
import secrets
import time
from functools import cache
from http import HTTPStatus

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import header_values
from app.api.problems import MAX_BODY_KIB, plain_problem
from app.container import Container

log = logging.getLogger(__name__)
requests = structlog.get_logger()  # past the standard library, by which a line would cost four times as much

_PROBES = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds
_CLIENT_CLOSED_REQUEST = 499  # for the log alone, as nginx has it
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # of a caller; another one may not go into a log

# OWASP REST Security Cheat Sheet; a page that needs more sets its own.
_SECURITY_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=63072000"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


class RequestMiddleware:
    """A pure ASGI middleware: the framework's own base class would cost more than the rest of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connections pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or _CLIENT_CLOSED_REQUEST
        except Exception:
            log.exception("request.failed", extra={"request_id": exchange.request_id})
            if exchange.status:  # the response has begun: the server breaks it off
                raise
            problem = plain_problem(HTTPStatus.INTERNAL_SERVER_ERROR, exchange.request_id)
            await problem(scope, receive, exchange.send)
        finally:
            exchange.log()


class _Exchange:
    """One request and its response. ``status`` is 0 until the response begins."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._began = time.perf_counter()
        given = header_values(scope, b"x-request-id")
        self.request_id = given[0] if given and _REQUEST_ID.fullmatch(given[0]) else secrets.token_hex(8)
        self.status = 0
        self._answered_after = 0.0
        self._received = 0
        self._is_ended = False
        self._scope, self._receive, self._send = scope, receive, send
        self._method = scope["method"]
        if self._method == "HEAD":  # answered as GET is, without the body (RFC 9110, section 9.3.2)
            scope["method"] = "GET"
        # Not all servers make a copy for each request.
        scope["state"] = {**scope.get("state", {}), "request_id": self.request_id}

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
            self.status, self._answered_after = int(message["status"]), time.perf_counter() - self._began
            headers = message["headers"]
            present = dict(headers)
            headers.append((b"x-request-id", self.request_id.encode()))
            headers.extend([header for header in _SECURITY_HEADERS if header[0] not in present])
        elif self._method == "HEAD":
            if self._is_ended:
                return
            self._is_ended, message = True, {"type": "http.response.body"}
        await self._send(message)

    def log(self) -> None:
        """Count the request, and log it with the template of its route: its path may have a phone number.

        The time until the response began is counted: that of an event stream has no meaning.
        """
        seconds = time.perf_counter() - self._began
        state, route = self._scope["state"], getattr(self._scope.get("route"), "path", None)
        outcome = state.get("outcome") or _outcome(self.status)  # the slug of a problem
        container: Container | None = state.get("container")
        if container:
            answered_after = self._answered_after or seconds
            container.metrics.request_handled(self._method, route, self.status, outcome, answered_after)
        fields = {
            "logger": __name__,
            "request_id": self.request_id,
            "client": state.get("client"),
            "method": self._method,
            "route": route,
            "status": self.status,
            "outcome": outcome,
            "duration_ms": round(seconds * 1000, 1),
        }
        if "trace_id" in state:
            fields["trace_id"] = state["trace_id"]
        is_probe = route in _PROBES and self.status != HTTPStatus.UNAUTHORIZED
        logger = requests.bind()  # by its own name; each other attribute is looked up through three calls
        logger.log(logging.DEBUG if is_probe else logging.INFO, "request.handled", **fields)


@cache
def _outcome(status: int) -> str:
    """Return the outcome of a response that is no problem with a slug."""
    if status in {0, _CLIENT_CLOSED_REQUEST}:
        return "broken-off"
    return "ok" if status < HTTPStatus.BAD_REQUEST else f"http-{status}"
