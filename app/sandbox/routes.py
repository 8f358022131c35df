"""The routes ``/sandbox/…``: virtual phones and their calls, dialling, the account and the faults."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from app.sandbox.faults import Fault, Faults
from app.sandbox.network import NoCallWaiting, VirtualNetwork, WrongNumber
from app.sandbox.numbers import DIAL_NUMBERS, MagicNumber, NetworkStatus
from app.verification.channels import Channel
from app.verification.model import Lang
from app.verification.phone import parse_phone

_Phone = Annotated[str, Path(description="A Russian mobile number, in any format.", examples=["+79001234567"])]
_Share = Annotated[
    float,
    Field(ge=0, le=1, allow_inf_nan=False, description="The share of requests to place a call that fail: 0.3 is 30 %."),
]
_Kinds = Annotated[list[Fault], Field(min_length=1, description="The faults to draw from.")]
_Balance = Annotated[
    float, Field(ge=0, le=1_000_000, allow_inf_nan=False, description="The balance of the account, in RUB.")
]


class PhoneCall(BaseModel):
    """One call to a phone of the sandbox."""

    model_config = ConfigDict(from_attributes=True)

    # Examples of the fields, not of the model: FastAPI drops each null that is a member of an example.
    call_id: str = Field(description="The provider's id of the call.", examples=["5f0c9a3e8b7d4c6fa1e2d3c4b5a69788"])
    channel: Channel = Field(description="How the person is reached.", examples=["voice"])
    status: NetworkStatus = Field(description="The status in the virtual telephone network.", examples=["answered"])
    heard: str | None = Field(
        description="The code: null until a call was answered, or until a flash call rang.", examples=["123456"]
    )
    caller: str | None = Field(
        description="The number that a flash call came from; its last digits are the code.", examples=[None]
    )
    dial: str | None = Field(description="The number to dial, while a reverse call waits for it.", examples=[None])
    lang: Lang | None = Field(
        description="The language in which the code is spoken; null unless it is spoken.", examples=["ru"]
    )
    repeat: int | None = Field(description="How often the code is spoken; null unless it is spoken.", examples=[2])
    placed_at: datetime = Field(description="When the call was placed, in UTC.", examples=["2026-11-02T09:30:00Z"])


class PhoneCalls(BaseModel):
    """The calls to one phone of the sandbox, oldest first."""

    calls: list[PhoneCall] = Field(description="The last 20 calls, oldest first.")


class InboxCall(PhoneCall):
    """One call to any phone of the sandbox."""

    phone: str = Field(description="The phone that was called, in E.164.", examples=["+79001234567"])


class Inbox(BaseModel):
    """The calls to all phones of the sandbox, newest first."""

    calls: list[InboxCall] = Field(description="The last calls, newest first.")


class DialedNumber(BaseModel):
    """A number to dial."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"number": DIAL_NUMBERS[0]}]})

    number: str = Field(description="The number, in any format.", pattern=r"^[0-9+() .\-]{1,32}$")


class MagicNumberEntry(BaseModel):
    """A phone number with a special effect."""

    phone: str = Field(description="The number in E.164.", examples=[MagicNumber.BUSY.value])
    effect: str = Field(description="What happens when it is called.", examples=[MagicNumber.BUSY.effect])


class MagicNumbers(BaseModel):
    """All phone numbers with a special effect."""

    numbers: list[MagicNumberEntry] = Field(description="In the order of the numbers.")


class SandboxAccount(BaseModel):
    """The sandbox's account at the provider."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"balance": 10000.0, "price": 3.0}]})

    balance: _Balance
    price: float = Field(description="The price of a call, in RUB.")


class NewBalance(BaseModel):
    """A balance to set."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"balance": 5}]})

    balance: _Balance


class SandboxFaults(BaseModel):
    """How often the sandbox's provider fails."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"share": 0.3, "kinds": list(Fault), "met": {"closed_after": 2}}]}
    )

    share: _Share
    kinds: _Kinds
    met: Mapping[Fault, int] = Field(description="How many requests met each fault, since the share was set.")


class NewFaults(BaseModel):
    """A share of faults to set."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"share": 0.3}]})

    share: _Share
    kinds: _Kinds | None = Field(None, description="The faults to draw from; the default is all.")
    seed: int | None = Field(None, description="The same seed draws the same faults again.")


class InboxQuery(BaseModel):
    """How many calls."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=1000, description="The most calls to return.")


def sandbox_router(network: VirtualNetwork) -> APIRouter:
    """Return the routes that show the phones of ``network`` and control it, for the main app in sandbox mode."""
    router = APIRouter(prefix="/sandbox", tags=["sandbox"])

    @router.get("/calls", operation_id="listSandboxCalls", summary="List all calls")
    async def list_sandbox_calls(query: Annotated[InboxQuery, Query()]) -> Inbox:
        """Return the last calls to all phones of the sandbox, newest first, and the code that was heard in each."""
        return Inbox.model_validate({"calls": network.latest_calls(query.limit)})

    @router.get("/phones/{phone}/calls", operation_id="listPhoneCalls", summary="Pick up a virtual phone")
    async def list_phone_calls(phone: _Phone) -> PhoneCalls:
        """Return the calls to a phone of the sandbox, and the code that was heard in each.

        A call is answered about two seconds after it was placed and ends about three seconds later. No real call is
        placed. A few numbers are busy, never answer, or fail: `GET /sandbox/magic-numbers` lists them. Flash calls
        never reach the numbers of the operator MTS, +7910 to +7919 and +7980 to +7989.
        """
        return PhoneCalls.model_validate({"calls": network.calls_of(parse_phone(phone).e164)})

    @router.post("/phones/{phone}/dial", operation_id="dialFromPhone", summary="Dial with a virtual phone")
    async def dial_from_phone(phone: _Phone, dialed: DialedNumber) -> PhoneCall:
        """Dial a number with a phone of the sandbox, as a reverse call asks for.

        The provider then notifies the service that the call came in. Without a reverse call that waits for this phone
        (for five minutes) the answer is a 404, and if it waits at another number a 409. The service ignores a call
        within the first two seconds after `start`: no person dials that fast.
        """
        try:
            call = network.dial(phone=parse_phone(phone).e164, number=dialed.number)
        except NoCallWaiting:
            raise HTTPException(HTTPStatus.NOT_FOUND, "No reverse call waits for this phone.") from None
        except WrongNumber:
            raise HTTPException(
                HTTPStatus.CONFLICT, "The reverse call of this phone waits at another number."
            ) from None
        return PhoneCall.model_validate(call)

    @router.get("/magic-numbers", operation_id="listMagicNumbers", summary="List the numbers to try")
    async def list_magic_numbers() -> MagicNumbers:
        """List the phone numbers with a special effect; a call to any other number is answered."""
        return MagicNumbers(numbers=[MagicNumberEntry(phone=number, effect=number.effect) for number in MagicNumber])

    _add_controls(router, network)
    return router


def _add_controls(router: APIRouter, network: VirtualNetwork) -> None:
    """Add the routes that control the network: its account, and its faults."""

    @router.get("/account", operation_id="getSandboxAccount", summary="Read the balance")
    async def read_sandbox_account() -> SandboxAccount:
        """Return the balance that pays for the calls of the sandbox. It is not real money."""
        return SandboxAccount(balance=float(network.balance), price=float(network.price))

    @router.put("/account", operation_id="setSandboxBalance", summary="Set the balance")
    async def set_sandbox_balance(account: NewBalance) -> SandboxAccount:
        """Set the balance, to try a low one. Below the price of a call none is placed."""
        network.balance = Decimal(str(account.balance))
        return await read_sandbox_account()

    @router.get("/faults", operation_id="getSandboxFaults", summary="Read how often the provider fails")
    async def read_sandbox_faults() -> SandboxFaults:
        """Return how often the provider fails on purpose, and which faults occurred. The default share is 0."""
        faults = network.faults
        return SandboxFaults(share=faults.share, kinds=list(faults.kinds), met=faults.met)

    @router.put("/faults", operation_id="setSandboxFaults", summary="Let the provider fail")
    async def set_sandbox_faults(faults: NewFaults) -> SandboxFaults:
        """Let a share of the requests that place a call fail, each with a random fault; `0` ends it.

        With `closed_after`, `delayed`, `stalled` and `malformed` the call is placed nevertheless.
        """
        network.faults = Faults(share=faults.share, kinds=tuple(faults.kinds or Fault), seed=faults.seed)
        return await read_sandbox_faults()
