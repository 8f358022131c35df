"""The middleware of every request, which makes its ``Exchange`` and answers 500."""

import logging
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.exchange import CLIENT_CLOSED_REQUEST, Exchange
from app.api.problems import plain_problem

log = logging.getLogger(__name__)


class RequestMiddleware:
    """A pure ASGI middleware: the framework's own base class would cost more than the rest of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connections pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = scope["exchange"] = Exchange(scope, receive, send)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or CLIENT_CLOSED_REQUEST
        except Exception:
            log.exception("request.failed", extra={"request_id": exchange.request_id})
            if exchange.status:  # the response has begun: the server breaks it off
                raise
            problem = plain_problem(HTTPStatus.INTERNAL_SERVER_ERROR, exchange.request_id)
            await problem(scope, receive, exchange.send)
        finally:
            exchange.log(scope)
