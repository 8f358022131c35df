"""What surrounds every request: its id, a limit of its body, security headers, the last catch, and a log line."""

import logging
import re
import secrets
import time
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import plain_problem

log = logging.getLogger(__name__)

_PROBES = frozenset({"/livez", "/readyz"})  # asked every few seconds
_MAX_BODY_BYTES = 16 * 1024
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# OWASP REST Security Cheat Sheet; a page that needs more says so itself.
_SECURITY_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("Strict-Transport-Security", "max-age=63072000"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)


class Edge:
    """A pure ASGI middleware: the framework's own base class would cost more than the rest of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connections pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _dress(message, request_id)
            await send(message)

        try:
            await self.app(scope, _limited(receive), send_dressed)
        except Exception:
            log.exception("request.failed", extra={"request_id": request_id})
            if status:  # the answer had begun: all that is left is to break it off
                raise
            problem = plain_problem(HTTPStatus.INTERNAL_SERVER_ERROR, request_id)
            await problem(scope, receive, send_dressed)
        finally:
            _log_request(scope, status, time.perf_counter() - began)


def _request_id(headers: Headers) -> str:
    """Take the caller's ``X-Request-ID`` if it is one that can go into a log, else make one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _limited(receive: Receive) -> Receive:
    """Stop reading a body that grows too large, whatever its ``Content-Length`` says."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > _MAX_BODY_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return message

    return receive_limited


def _dress(message: Message, request_id: str) -> None:
    headers = MutableHeaders(scope=message)
    headers["X-Request-ID"] = request_id
    for name, value in _SECURITY_HEADERS:
        headers.setdefault(name, value)


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    """Write one line: the route's template and not its path, which may hold a phone number."""
    state, route = scope["state"], getattr(scope.get("route"), "path", None)
    log.log(
        logging.DEBUG if route in _PROBES else logging.INFO,
        "request.handled",
        extra={
            "request_id": state["request_id"],
            "client": state.get("client"),
            "method": scope["method"],
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
        },
    )
