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
        began = time.perf_counter()
        given_ids = header_values(scope, b"x-request-id")
        request_id = given_ids[0] if given_ids and _REQUEST_ID.fullmatch(given_ids[0]) else secrets.token_hex(8)
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}  # not all servers make a copy for each
        status, answered = 0, 0.0
        method = scope["method"]
        if method == "HEAD":  # answered as GET is, without the body (RFC 9110, section 9.3.2)
            scope["method"], send = "GET", _without_body(send)

        async def send_with_headers(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = int(message["status"]), time.perf_counter()
                headers = message["headers"]
                present = dict(headers)
                headers.append((b"x-request-id", request_id.encode()))
                headers.extend([header for header in _SECURITY_HEADERS if header[0] not in present])
            await send(message)

        try:
            await self.app(scope, _limited(receive), send_with_headers)
        except ClientDisconnect:
            status = status or _CLIENT_CLOSED_REQUEST
        except Exception:
            log.exception("request.failed", extra={"request_id": request_id})
            if status:  # the response has begun: the server breaks it off
                raise
            problem = plain_problem(HTTPStatus.INTERNAL_SERVER_ERROR, request_id)
            await problem(scope, receive, send_with_headers)
        finally:
            ended = time.perf_counter()
            scope["method"] = method
            _log_request(scope, status, (answered or ended) - began, ended - began)


def _limited(receive: Receive) -> Receive:
    """Stop reading a body that grows too large, whatever its ``Content-Length`` says."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_KIB * 1024:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return message

    return receive_limited


def _without_body(send: Send) -> Send:
    """Send only the head of a response, and end it at the first part of its body: a stream may have no end."""
    is_sent = False

    async def send_head(message: Message) -> None:
        nonlocal is_sent
        if message["type"] == "http.response.start":
            await send(message)
        elif not is_sent:
            is_sent = True
            await send({"type": "http.response.body"})

    return send_head


def _log_request(scope: Scope, status: int, answered_after: float, seconds: float) -> None:
    """Count the request, and log it with the template of its route: its path may have a phone number.

    ``answered_after`` is the time until the response began, which is counted: that of an event stream has no meaning.
    """
    state, method, route = scope["state"], scope["method"], getattr(scope.get("route"), "path", None)
    outcome = state.get("outcome") or _outcome(status)  # the slug of a problem
    container: Container | None = state.get("container")
    if container:
        container.metrics.request_handled(method, route, status, outcome, answered_after)
    fields = {
        "logger": __name__,
        "request_id": state["request_id"],
        "client": state.get("client"),
        "method": method,
        "route": route,
        "status": status,
        "outcome": outcome,
        "duration_ms": round(seconds * 1000, 1),
    }
    if "trace_id" in state:
        fields["trace_id"] = state["trace_id"]
    is_probe = route in _PROBES and status != HTTPStatus.UNAUTHORIZED
    logger = requests.bind()  # by its own name; each other attribute is looked up through three calls
    logger.log(logging.DEBUG if is_probe else logging.INFO, "request.handled", **fields)


@cache
def _outcome(status: int) -> str:
    """Return the outcome of a response that is no problem with a slug."""
    if status in {0, _CLIENT_CLOSED_REQUEST}:
        return "broken-off"
    return "ok" if status < HTTPStatus.BAD_REQUEST else f"http-{status}"
