"""The sandbox's HTTP side: Plusofon's routes and failure shapes on a loopback port, in front of the virtual network."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Annotated, Self, TypeVar, cast

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from app.plusofon.sandbox.network import CallRefused, CallUnknown, NoAccess, NoReply, VirtualNetwork
from app.verification.model import Lang

ACCOUNT_TOKEN = "sandbox-token-that-opens-nothing"  # noqa: S105 - told by the accounts route, as the vendor's tells its own
_PAGE_NOT_FOUND = {"jsonrpc": "2.0", "result": None, "error": {"code": 0, "message": "Page not found."}}


def create_sandbox_app(
    network: VirtualNetwork,
    *,
    user_id: str,
    access_token: str,
    cabinet_token: str | None = None,
    stall: float = 30.0,
) -> Starlette:
    """Build the stand-in for Plusofon's API.

    ``access_token`` places calls and ``cabinet_token`` opens the account routes; without the latter the former does
    both. Where the answer is never to come, the request is held for ``stall`` seconds and then ended with a 504.
    """
    keys = _Keys(user_id=user_id, calls=access_token, account=cabinet_token or access_token)
    api = _Api(network=network, keys=keys, stall=stall)
    app = Starlette(
        routes=[
            Route("/api/v1/flash-call/call", api.call, methods=["POST"]),
            Route("/api/v1/flash-call/status", api.status, methods=["POST"]),
            Route("/api/v1/flash-call", api.accounts, methods=["GET"]),
            Route("/api/v1/payment/balance", api.balance, methods=["GET"]),
        ],
        exception_handlers={404: _page_not_found, 405: _page_not_found, HTTPException: _explain},
    )
    app.router.redirect_slashes = False  # a path with a slash too many is a wrong path
    return app


class _Body(BaseModel):
    model_config = ConfigDict(strict=True)


_BodyT = TypeVar("_BodyT", bound=_Body)


class _CallBody(_Body):
    phone: Annotated[str, Field(pattern=r"^[78][0-9]{10}$")]
    pin: Annotated[str, Field(pattern=r"^[0-9]{4,6}$")]
    lang: Lang
    repeat: Annotated[int, Field(ge=1, le=5)]

    @property
    def e164(self) -> str:
        return f"+7{self.phone[1:]}"


class _StatusBody(_Body):
    call_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    """Who is let in where: ``calls`` and ``account`` are the two kinds of token."""

    user_id: str
    calls: str = field(repr=False)
    account: str = field(repr=False)

    def admit(self, request: Request, token: str) -> None:
        """Let the request pass if it shows ``token``; showing the token of the other kind is a 403, all else a 401."""
        shown = request.headers.get("authorization")
        if request.headers.get("client") != self.user_id or shown not in {
            f"Bearer {self.calls}",
            f"Bearer {self.account}",
        }:
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "Unauthenticated.")
        if shown != f"Bearer {token}":
            raise HTTPException(HTTPStatus.FORBIDDEN, "Недостаточно прав")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Api:
    """The routes."""

    network: VirtualNetwork
    keys: _Keys
    stall: float

    async def call(self, request: Request) -> Response:
        self.keys.admit(request, self.keys.calls)
        body = await _read(request, _CallBody)
        try:
            call = self.network.place(phone=body.e164, pin=body.pin, lang=body.lang, repeat=body.repeat)
        except CallRefused as refusal:
            return _refused(refusal.message)
        except NoAccess:
            return PlainTextResponse("no access", HTTPStatus.INTERNAL_SERVER_ERROR)
        except NoReply:
            return await self._keep_silent(request)
        return _success({"call_id": call.call_id})

    async def status(self, request: Request) -> Response:
        self.keys.admit(request, self.keys.calls)
        body = await _read(request, _StatusBody)
        try:
            status = self.network.status(body.call_id).status
        except CallUnknown:
            return _refused("error find call: not found")
        return _success({"status": status, "message": f"call {status.replace('_', ' ')}"})

    async def accounts(self, request: Request) -> Response:
        self.keys.admit(request, self.keys.account)
        return _success([{"id": 7, "name": "Sandbox", "access_token": ACCOUNT_TOKEN}])

    async def balance(self, request: Request) -> Response:
        self.keys.admit(request, self.keys.account)
        return JSONResponse({"balance": float(self.network.balance)})

    async def _keep_silent(self, request: Request) -> Response:
        """Hold the request until the caller hangs up or the stall is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.stall):
                await request.receive()  # the body was read whole: the next thing to hear of is that they left
        return PlainTextResponse("", HTTPStatus.GATEWAY_TIMEOUT)


async def _read(request: Request, shape: type[_BodyT]) -> _BodyT:
    try:
        return shape.model_validate_json(await request.body())
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(step) for step in mistake["loc"]) or "body"
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"{where}: {mistake['msg']}") from None


def _success(data: object) -> Response:
    return JSONResponse({"success": True, "data": data})


def _refused(message: str) -> Response:
    """Say no as Plusofon does: a failure inside an HTTP 200."""
    return _failure(HTTPStatus.OK, HTTPStatus.INTERNAL_SERVER_ERROR, message)


def _failure(status: int, code: int, message: str) -> Response:
    return JSONResponse({"success": False, "code": code, "message": message}, status)


async def _explain(_request: Request, error: Exception) -> Response:
    problem = cast("HTTPException", error)  # the only class that this handler is registered for
    return _failure(problem.status_code, problem.status_code, problem.detail)


async def _page_not_found(_request: Request, _error: Exception) -> Response:
    return JSONResponse(_PAGE_NOT_FOUND)


class SandboxServer:
    """Serves an app on a free port of 127.0.0.1, inside the running event loop, while the context is open."""

    _url: str
    _server: "_QuietServer"
    _serving: asyncio.Task[None]

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    @property
    def url(self) -> str:
        """Where it listens, as ``http://127.0.0.1:port``."""
        return self._url

    async def __aenter__(self) -> Self:
        listener = _listen()
        self._url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = _QuietServer(self._app)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._serving.add_done_callback(lambda _: self._server.settled.set())
        await self._server.settled.wait()
        if not self._server.started:
            listener.close()
            await self._serving  # raises what kept it from starting
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        await self._serving


def _listen() -> socket.socket:
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it each answer takes 40 ms longer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    return listener


class _QuietServer(uvicorn.Server):
    """A uvicorn that leaves the process alone: it takes no signals, and hangs up on everybody when it goes."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                interface="asgi3",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,  # for the whole process: uvicorn keeps one access logger, and the app logs for itself
                timeout_graceful_shutdown=1,
            )
        )
        self.settled = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none: they belong to the server in whose event loop this one runs."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell whoever waits for it."""
        await super().startup(sockets)
        self.settled.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Hang up first: requests that are stalled on purpose would keep uvicorn waiting for them."""
        for connection in list(self.server_state.connections):
            connection.transport.close()
        await super().shutdown(sockets)
