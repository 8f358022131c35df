"""Plusofon's HTTP API, with its responses and errors, in front of the virtual telephone network."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from app.sandbox.faults import Fault
from app.sandbox.network import NO_SUCH_CALL, CallRefused, CallUnknown, NoAccess, NoReply, VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.sandbox.provider_callbacks import open_callback_sender
from app.sandbox.server import HANG_UP
from app.verification.channels import Channel
from app.verification.model import Lang
from app.verification.operators import operator_of
from app.verification.phone import Phone

ACCOUNT_TOKEN = "sandbox-token-that-opens-nothing"  # noqa: S105 - in the list of accounts, where Plusofon has its own


def create_sandbox_app(
    network: VirtualNetwork, *, user_id: str, access_token: str, cabinet_token: str | None = None, stall: float = 30.0
) -> Starlette:
    """Return the API as an app, which sends the network's callbacks while its lifespan is open.

    ``access_token`` places calls and ``cabinet_token`` reads the account; by default the former does both. A request
    without a response is held for ``stall`` seconds, and then ended with a 504.
    """
    api = _Api(network, user_id, access_token, cabinet_token or access_token, stall)

    @asynccontextmanager
    async def send_callbacks(_: Starlette) -> AsyncIterator[None]:
        async with open_callback_sender(pause=network.pace) as send:
            network.send_callback = send
            try:
                yield
            finally:
                network.send_callback = None

    posts = {
        "call": api.placing(_CallBody, api.call),
        "send": api.placing(_SendBody, api.send),
        "call-to-auth": api.placing(_CallToAuthBody, api.call_to_auth),
        "status": api.status,
    }
    app = Starlette(
        routes=[
            *(Route(f"/api/v1/flash-call/{name}", respond, methods=["POST"]) for name, respond in posts.items()),
            Route("/api/v1/flash-call", api.accounts, methods=["GET"]),
            Route("/api/v1/payment/balance", api.balance, methods=["GET"]),
        ],
        exception_handlers={
            **dict.fromkeys((HTTPException, CallRefused, CallUnknown, NoAccess), _explain),
            NoReply: api.hold,
        },
        lifespan=send_callbacks,
    )
    app.router.redirect_slashes = False  # a path with an additional slash is unknown
    return app


class _Body(BaseModel):
    model_config = ConfigDict(strict=True)


_BodyT = TypeVar("_BodyT", bound=_Body)


class _PhoneBody(_Body):
    # Converted to E.164.
    phone: Annotated[str, Field(pattern=r"^[78][0-9]{10}$"), AfterValidator(lambda phone: f"+7{phone[1:]}")]


class _CallBody(_PhoneBody):
    pin: Annotated[str, Field(pattern=r"^[0-9]{4,6}$")]
    lang: Lang
    repeat: Annotated[int, Field(ge=1, le=5)]


class _SendBody(_PhoneBody):
    pin: Annotated[str, Field(pattern=r"^[0-9]{4}$")] | None = None


def _check_callback_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError("must be an http(s) URL")  # without the URL, which holds a secret
    return url


class _CallToAuthBody(_PhoneBody):
    hook_url: Annotated[str, AfterValidator(_check_callback_url)]


class _StatusBody(_Body):
    call_id: str


@dataclass(frozen=True, slots=True)
class _Api:
    """The routes."""

    network: VirtualNetwork
    user_id: str
    access_token: str = field(repr=False)
    cabinet_token: str = field(repr=False)
    stall: float

    def call(self, body: _CallBody) -> object:
        call = self.network.place(phone=body.phone, pin=body.pin, lang=body.lang, repeat=body.repeat)
        return {"call_id": call.call_id}

    def send(self, body: _SendBody) -> object:
        call = self.network.place_flash_call(phone=body.phone, pin=body.pin)
        if not (self.network.returns_pin or body.phone == MagicNumber.OTHER_PIN):
            return {"key": call.call_id}
        operator = operator_of(Phone(body.phone))
        return {"key": call.call_id, "pin": call.pin, **({"operator": operator} if operator else {})}

    def call_to_auth(self, body: _CallToAuthBody) -> object:
        call = self.network.place_reverse_call(phone=body.phone, callback_url=body.hook_url)
        return {"key": call.call_id, "phone": call.dial}

    async def status(self, request: Request) -> Response:
        """Return the status of a voice call; Plusofon documents none for other calls."""
        body = await self._read(request, _StatusBody)
        call = self.network.status(body.call_id)
        if call.channel is not Channel.VOICE:
            raise CallUnknown(NO_SUCH_CALL)
        return _success({"status": call.status, "message": f"call {call.status.replace('_', ' ')}"})

    async def accounts(self, request: Request) -> Response:
        self._authorize(request, self.cabinet_token)
        return _success([{"id": 7, "name": "Sandbox", "access_token": ACCOUNT_TOKEN}])

    async def balance(self, request: Request) -> Response:
        self._authorize(request, self.cabinet_token)
        return JSONResponse({"balance": float(self.network.balance)})

    def _authorize(self, request: Request, token: str) -> None:
        """Require ``token``. The other token of the account is a 403, anything else a 401."""
        tokens = {f"Bearer {self.access_token}", f"Bearer {self.cabinet_token}"}
        given = request.headers.get("authorization")
        if request.headers.get("client") != self.user_id or given not in tokens:
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "Unauthenticated.")
        if given != f"Bearer {token}":
            raise HTTPException(HTTPStatus.FORBIDDEN, "Недостаточно прав")

    async def _read(self, request: Request, model: type[_BodyT]) -> _BodyT:
        """Return the body of a request with the access token."""
        self._authorize(request, self.access_token)
        try:
            return model.model_validate_json(await request.body())
        except ValidationError as error:
            mistake = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(step) for step in mistake["loc"]) or "body"
            message = mistake["msg"].removeprefix("Value error, ")
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"{where}: {message}") from None

    def placing(
        self, model: type[_BodyT], place: Callable[[_BodyT], object]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return a route that responds with the data that ``place`` returns, unless a request meets a fault."""

        async def respond(request: Request) -> Response:
            body = await self._read(request, model)
            fault = self.network.faults.draw()
            if fault and not fault.placed:
                return _NOT_PLACED[fault]() if fault in _NOT_PLACED else await self._hang_up(request)
            response = _success(place(body))
            match fault:
                case Fault.DELAYED:
                    await asyncio.sleep(self.network.faults.delay)
                case Fault.MALFORMED:
                    return Response(bytes(response.body)[:-2], media_type="application/json")
                case Fault.STALLED:
                    return await self.hold(request)
                case Fault.CLOSED_AFTER:
                    return await self._hang_up(request)
            return response

        return respond

    async def _hang_up(self, request: Request) -> Response:
        request.scope["extensions"][HANG_UP]()
        return await self.hold(request)  # until the connection is closed

    async def hold(self, request: Request, _error: Exception | None = None) -> Response:
        """Hold the request until the client disconnects, or ``stall`` seconds are over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.stall):
                await request.receive()  # the body was read, so the next message is the disconnect
        return PlainTextResponse("", HTTPStatus.GATEWAY_TIMEOUT)


def _success(data: object) -> Response:
    return JSONResponse({"success": True, "data": data})


def _refusal(message: str) -> Response:
    """Return a failure as Plusofon does, inside an HTTP 200."""
    return _failure(HTTPStatus.OK, HTTPStatus.INTERNAL_SERVER_ERROR, message)


def _failure(status: int, code: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"success": False, "code": code, "message": message}, status, headers)


_NOT_PLACED: Mapping[Fault, Callable[[], Response]] = {
    Fault.REFUSED: lambda: _refusal("error find flashcall account: try later"),
    Fault.TOO_MANY_REQUESTS: lambda: _failure(429, 429, "Too Many Attempts.", {"Retry-After": "1"}),
    Fault.SERVER_ERROR: lambda: HTMLResponse("<!doctype html><title>500</title><h1>Internal Server Error</h1>", 500),
    Fault.BAD_GATEWAY: lambda: Response(status_code=HTTPStatus.BAD_GATEWAY),
}


async def _explain(_request: Request, error: Exception) -> Response:
    match error:
        case HTTPException(status_code=404 | 405):
            return JSONResponse({"jsonrpc": "2.0", "result": None, "error": {"code": 0, "message": "Page not found."}})
        case HTTPException():
            return _failure(error.status_code, error.status_code, error.detail)
        case NoAccess():
            return PlainTextResponse("no access", HTTPStatus.INTERNAL_SERVER_ERROR)
        case _:
            return _refusal(str(error))
