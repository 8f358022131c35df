"""The sandbox's HTTP side: Plusofon's routes and failure shapes, in front of the virtual network."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from app.sandbox.answers import Mishap, failure, keep_silent, refused, success
from app.sandbox.errors import CallRefused, CallUnknown, NoAccess, NoReply
from app.sandbox.hooks import HookPoster, check_hook_url
from app.sandbox.network import VirtualNetwork
from app.verification.channels import Channel
from app.verification.model import Lang

ACCOUNT_TOKEN = "sandbox-token-that-opens-nothing"  # noqa: S105 - told by the accounts route, as the vendor's tells its own
_NO_SUCH_CALL = "error find call: not found"
_PAGE_NOT_FOUND = {"jsonrpc": "2.0", "result": None, "error": {"code": 0, "message": "Page not found."}}


def create_sandbox_app(
    network: VirtualNetwork,
    *,
    user_id: str,
    access_token: str,
    cabinet_token: str | None = None,
    stall: float = 30.0,
) -> Starlette:
    """Build the stand-in for Plusofon's API, which posts the network's hooks while its lifespan is open.

    ``access_token`` places calls and ``cabinet_token`` opens the account routes; without the latter the former does
    both. Where the answer is never to come, the request is held for ``stall`` seconds and then ended with a 504.
    """
    keys = _Keys(user_id=user_id, calls=access_token, account=cabinet_token or access_token)
    api = _Api(network=network, keys=keys, stall=stall)

    @asynccontextmanager
    async def post_hooks(_: Starlette) -> AsyncIterator[None]:
        async with HookPoster(pause=network.pace) as poster:
            with network.posting(poster.post):
                yield

    app = Starlette(
        routes=[
            Route("/api/v1/flash-call/call", api.call, methods=["POST"]),
            Route("/api/v1/flash-call/status", api.status, methods=["POST"]),
            Route("/api/v1/flash-call/send", api.send, methods=["POST"]),
            Route("/api/v1/flash-call/check", api.check, methods=["POST"]),
            Route("/api/v1/flash-call/call-to-auth", api.call_to_auth, methods=["POST"]),
            Route("/api/v1/flash-call", api.accounts, methods=["GET"]),
            Route("/api/v1/payment/balance", api.balance, methods=["GET"]),
        ],
        exception_handlers={404: _page_not_found, 405: _page_not_found, HTTPException: _explain},
        lifespan=post_hooks,
    )
    app.router.redirect_slashes = False  # a path with a slash too many is a wrong path
    return app


class _Body(BaseModel):
    model_config = ConfigDict(strict=True)


_BodyT = TypeVar("_BodyT", bound=_Body)


class _PhoneBody(_Body):
    phone: Annotated[str, Field(pattern=r"^[78][0-9]{10}$")]

    @property
    def e164(self) -> str:
        return f"+7{self.phone[1:]}"


_FlashPin = Annotated[str, Field(pattern=r"^[0-9]{4}$")]


class _CallBody(_PhoneBody):
    pin: Annotated[str, Field(pattern=r"^[0-9]{4,6}$")]
    lang: Lang
    repeat: Annotated[int, Field(ge=1, le=5)]


class _SendBody(_PhoneBody):
    pin: _FlashPin | None = None


class _CallToAuthBody(_PhoneBody):
    hook_url: Annotated[str, AfterValidator(check_hook_url)]


class _StatusBody(_Body):
    call_id: str


class _CheckBody(_Body):
    key: str
    pin: _FlashPin


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

        def place() -> object:
            call = self.network.place(phone=body.e164, pin=body.pin, lang=body.lang, repeat=body.repeat)
            return {"call_id": call.call_id}

        return await self._place(request, place)

    async def send(self, request: Request) -> Response:
        self.keys.admit(request, self.keys.calls)
        body = await _read(request, _SendBody)

        def place() -> object:
            placed = self.network.place_flash_call(phone=body.e164, pin=body.pin)
            told = {"key": placed.call.call_id, "pin": placed.pin, "operator": placed.operator}
            return {name: value for name, value in told.items() if value is not None}

        return await self._place(request, place)

    async def call_to_auth(self, request: Request) -> Response:
        self.keys.admit(request, self.keys.calls)
        body = await _read(request, _CallToAuthBody)

        def place() -> object:
            call = self.network.place_reverse_call(phone=body.e164, hook_url=body.hook_url)
            return {"key": call.call_id, "phone": call.dial}

        return await self._place(request, place)

    async def status(self, request: Request) -> Response:
        """Return the state of a voice call; that of another can not be asked for, as far as the vendor says."""
        self.keys.admit(request, self.keys.calls)
        body = await _read(request, _StatusBody)
        try:
            call = self.network.status(body.call_id)
        except CallUnknown:
            return refused(_NO_SUCH_CALL)
        if call.channel is not Channel.VOICE:
            return refused(_NO_SUCH_CALL)
        return success({"status": call.status, "message": f"call {call.status.replace('_', ' ')}"})

    async def check(self, request: Request) -> Response:
        self.keys.admit(request, self.keys.calls)
        body = await _read(request, _CheckBody)
        try:
            right = self.network.is_pin(body.key, body.pin)
        except CallUnknown:
            return refused(_NO_SUCH_CALL)
        return success() if right else refused("wrong pin")

    async def accounts(self, request: Request) -> Response:
        self.keys.admit(request, self.keys.account)
        return success([{"id": 7, "name": "Sandbox", "access_token": ACCOUNT_TOKEN}])

    async def balance(self, request: Request) -> Response:
        self.keys.admit(request, self.keys.account)
        return JSONResponse({"balance": float(self.network.balance)})

    async def _place(self, request: Request, place: Callable[[], object]) -> Response:
        """Answer what ``place`` returns, unless it refuses or the request meets a fault."""
        fault = self.network.faults.draw()
        mishap = Mishap(fault=fault, faults=self.network.faults, stall=self.stall) if fault else None
        if mishap and not mishap.fault.placed:
            return await mishap.instead_of(None, request)
        try:
            answer = success(place())
        except CallRefused as refusal:
            return refused(refusal.message)
        except NoAccess:
            return PlainTextResponse("no access", HTTPStatus.INTERNAL_SERVER_ERROR)
        except NoReply:
            return await keep_silent(request, self.stall)
        return await mishap.instead_of(answer, request) if mishap else answer


async def _read(request: Request, shape: type[_BodyT]) -> _BodyT:
    try:
        return shape.model_validate_json(await request.body())
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(step) for step in mistake["loc"]) or "body"
        message = mistake["msg"].removeprefix("Value error, ")
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"{where}: {message}") from None


async def _explain(_request: Request, error: Exception) -> Response:
    problem = cast("HTTPException", error)  # the only class that this handler is registered for
    return failure(problem.status_code, problem.status_code, problem.detail)


async def _page_not_found(_request: Request, _error: Exception) -> Response:
    return JSONResponse(_PAGE_NOT_FOUND)
