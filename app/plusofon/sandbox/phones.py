"""The sandbox's phones as a caller of the service sees them: which calls came in, and what was said in them."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from app.plusofon.sandbox.network import MagicNumber, NetworkStatus, VirtualNetwork
from app.verification.model import Lang
from app.verification.phone import parse_phone

_EXAMPLE_CALL: JsonDict = {
    "call_id": "5f0c9a3e8b7d4c6fa1e2d3c4b5a69788",
    "status": "answered",
    "heard": "123456",
    "lang": "ru",
    "repeat": 2,
    "placed_at": "2026-11-02T09:30:00Z",
}


class PhoneCall(BaseModel):
    """One call to a phone of the sandbox."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_EXAMPLE_CALL]})

    call_id: str = Field(description="The provider's name of the call.")
    status: NetworkStatus = Field(description="The virtual telephone network's word on the call.")
    heard: str | None = Field(description="The code that was spoken; null until the call was answered.")
    lang: Lang = Field(description="The language in which the code is spoken.")
    repeat: int = Field(description="How many times the code is spoken.")
    placed_at: datetime = Field(description="When the call was placed, in UTC.")


class PhoneCalls(BaseModel):
    """The calls to one phone of the sandbox, oldest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"calls": [_EXAMPLE_CALL]}]})

    calls: list[PhoneCall] = Field(description="The last 20 calls, oldest first.")


class MagicNumberEntry(BaseModel):
    """A phone number to which something special happens."""

    phone: str = Field(description="The number in E.164.", examples=[MagicNumber.BUSY.value])
    effect: str = Field(description="What happens when it is called.", examples=[MagicNumber.BUSY.effect])


class MagicNumbers(BaseModel):
    """All the phone numbers to which something special happens."""

    numbers: list[MagicNumberEntry] = Field(description="In the order of the numbers.")


def sandbox_router(network: VirtualNetwork) -> APIRouter:
    """Build the routes that show the phones of ``network``; for the main app in sandbox mode only."""
    router = APIRouter(prefix="/sandbox", tags=["sandbox"])

    @router.get("/phones/{phone}/calls")
    async def list_phone_calls(
        phone: Annotated[
            str, Path(description="A Russian mobile number, however it is spelled.", examples=["+79001234567"])
        ],
    ) -> PhoneCalls:
        """Pick up a phone of the sandbox: the calls that came in, and the code that was heard in each.

        A call is answered about two seconds after it was placed and ends about three seconds later. Nobody is really
        called. A few numbers are busy, never answer, or fail: `GET /sandbox/magic-numbers` lists them.
        """
        calls = network.calls_of(parse_phone(phone).e164)
        return PhoneCalls(calls=[PhoneCall.model_validate(call) for call in calls])

    @router.get("/magic-numbers")
    async def list_magic_numbers() -> MagicNumbers:
        """List the phone numbers that make a call go wrong, each in its own way; every other number is answered."""
        return MagicNumbers(numbers=[MagicNumberEntry(phone=number, effect=number.effect) for number in MagicNumber])

    return router
