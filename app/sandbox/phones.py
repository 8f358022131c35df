"""The sandbox's phones as a caller of the service sees them: which calls came in, what was said, and a dial."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from app.sandbox.calls import NetworkStatus
from app.sandbox.controls import add_controls
from app.sandbox.errors import NobodyWaits, WrongNumber
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import DIAL_NUMBERS, MagicNumber
from app.verification.channels import Channel
from app.verification.model import Lang
from app.verification.phone import parse_phone

_Phone = Annotated[str, Path(description="A Russian mobile number, however it is spelled.", examples=["+79001234567"])]


class PhoneCall(BaseModel):
    """One call to a phone of the sandbox."""

    model_config = ConfigDict(from_attributes=True)

    # Examples of the fields, not of the model: FastAPI drops each null that is a member of an example.
    call_id: str = Field(description="The provider's name of the call.", examples=["5f0c9a3e8b7d4c6fa1e2d3c4b5a69788"])
    channel: Channel = Field(description="How the person is reached.", examples=["voice"])
    status: NetworkStatus = Field(
        description="The virtual telephone network's word on the call.", examples=["answered"]
    )
    heard: str | None = Field(
        description="The code: null until a call was answered, or until a flash call rang.", examples=["123456"]
    )
    caller: str | None = Field(
        description="The number that a flash call came from; its last digits are the code.", examples=[None]
    )
    dial: str | None = Field(description="The number to dial, as long as a reverse call waits for it.", examples=[None])
    lang: Lang | None = Field(
        description="The language in which the code is spoken; null where nothing is.", examples=["ru"]
    )
    repeat: int | None = Field(description="How many times the code is spoken; null where nothing is.", examples=[2])
    placed_at: datetime = Field(description="When the call was placed, in UTC.", examples=["2026-11-02T09:30:00Z"])


class PhoneCalls(BaseModel):
    """The calls to one phone of the sandbox, oldest first."""

    calls: list[PhoneCall] = Field(description="The last 20 calls, oldest first.")


class DialedNumber(BaseModel):
    """A number to dial."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"number": DIAL_NUMBERS[0]}]})

    number: str = Field(description="However it is spelled.", pattern=r"^[0-9+() .\-]{1,32}$")


class MagicNumberEntry(BaseModel):
    """A phone number to which something special happens."""

    phone: str = Field(description="The number in E.164.", examples=[MagicNumber.BUSY.value])
    effect: str = Field(description="What happens when it is called.", examples=[MagicNumber.BUSY.effect])


class MagicNumbers(BaseModel):
    """All the phone numbers to which something special happens."""

    numbers: list[MagicNumberEntry] = Field(description="In the order of the numbers.")


def sandbox_router(network: VirtualNetwork) -> APIRouter:
    """Build the routes that show the phones of ``network`` and control it; for the main app in sandbox mode only."""
    router = APIRouter(prefix="/sandbox", tags=["sandbox"])

    @router.get("/phones/{phone}/calls", operation_id="listPhoneCalls", summary="Pick up a virtual phone")
    async def list_phone_calls(phone: _Phone) -> PhoneCalls:
        """Pick up a phone of the sandbox: the calls that came in, and the code that was heard in each.

        A call is answered about two seconds after it was placed and ends about three seconds later. Nobody is really
        called. A few numbers are busy, never answer, or fail: `GET /sandbox/magic-numbers` lists them. Flash calls
        never reach the numbers of the operator MTS, +7910 to +7919 and +7980 to +7989.
        """
        calls = network.calls_of(parse_phone(phone).e164)
        return PhoneCalls(calls=[PhoneCall.model_validate(call) for call in calls])

    @router.post(
        "/phones/{phone}/dial",
        response_model=PhoneCall,
        operation_id="dialFromPhone",
        summary="Dial with a virtual phone",
    )
    async def dial_from_phone(phone: _Phone, dialed: DialedNumber, request: Request) -> PhoneCall | JSONResponse:
        """Dial a number with a phone of the sandbox, as a reverse call asks for.

        The provider then tells the service that the call came in. Where no reverse call waits for this phone (each
        waits five minutes) the answer is a 404, and a 409 where one waits at another number. The service believes no
        dial within the first two seconds after `start`: nobody is as quick as that.
        """
        try:
            call = network.dial(phone=parse_phone(phone).e164, number=dialed.number)
        except NobodyWaits:
            return _problem(request, HTTPStatus.NOT_FOUND, "No reverse call waits for this phone.")
        except WrongNumber:
            return _problem(request, HTTPStatus.CONFLICT, "The reverse call of this phone waits at another number.")
        return PhoneCall.model_validate(call)

    @router.get("/magic-numbers", operation_id="listMagicNumbers", summary="List the numbers to try")
    async def list_magic_numbers() -> MagicNumbers:
        """List the phone numbers that make a call go wrong, each in its own way; every other number is answered."""
        return MagicNumbers(numbers=[MagicNumberEntry(phone=number, effect=number.effect) for number in MagicNumber])

    add_controls(router, network)
    return router


def _problem(request: Request, status: HTTPStatus, detail: str) -> JSONResponse:
    """Build a problem that its HTTP status explains (RFC 9457, section 4.2.1), as the service around tells its own."""
    body = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": detail,
        "instance": getattr(request.state, "request_id", ""),
    }
    return JSONResponse(body, status, media_type="application/problem+json")
