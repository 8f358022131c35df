"""The shapes of Plusofon's answers, and how the stand-in spoils them on purpose."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from app.sandbox.faults import Fault, Faults
from app.sandbox.server import HANG_UP

_ERROR_PAGE = "<!doctype html><title>500</title><h1>Internal Server Error</h1>"


def success(data: object = None) -> Response:
    """Say yes."""
    return JSONResponse({"success": True} if data is None else {"success": True, "data": data})


def refused(message: str) -> Response:
    """Say no as Plusofon does: a failure inside an HTTP 200."""
    return failure(HTTPStatus.OK, HTTPStatus.INTERNAL_SERVER_ERROR, message)


def failure(status: int, code: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Say no with an HTTP status."""
    return JSONResponse({"success": False, "code": code, "message": message}, status, headers)


async def keep_silent(request: Request, stall: float) -> Response:
    """Hold the request until the caller hangs up or ``stall`` seconds are over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(stall):
            await request.receive()  # the body was read whole: the next thing to hear of is that they left
    return PlainTextResponse("", HTTPStatus.GATEWAY_TIMEOUT)


_NOT_PLACED: Mapping[Fault, Callable[[], Response]] = {
    Fault.REFUSED: lambda: refused("error find flashcall account: try later"),
    Fault.TOO_MANY_REQUESTS: lambda: failure(429, 429, "Too Many Attempts.", {"Retry-After": "1"}),
    Fault.SERVER_ERROR: lambda: HTMLResponse(_ERROR_PAGE, HTTPStatus.INTERNAL_SERVER_ERROR),
    Fault.BAD_GATEWAY: lambda: Response(status_code=HTTPStatus.BAD_GATEWAY),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mishap:
    """A fault that one request meets; ``stall`` is in seconds."""

    fault: Fault
    faults: Faults
    stall: float

    async def instead_of(self, answer: Response | None, request: Request) -> Response:
        """Return what is sent instead of ``answer``; there is one where the call was placed."""
        match self.fault:
            case Fault.DELAYED if answer:
                await asyncio.sleep(self.faults.delay)
                return answer
            case Fault.MALFORMED if answer:
                return Response(bytes(answer.body)[:-2], media_type="application/json")
            case Fault.STALLED:
                return await keep_silent(request, self.stall if self.faults.stall is None else self.faults.stall)
            case Fault.CLOSED_BEFORE | Fault.CLOSED_AFTER:
                request.scope["extensions"][HANG_UP]()
                return await keep_silent(request, self.stall)  # until the connection is known to be gone
        return _NOT_PLACED[self.fault]()
