"""The wire models of a verification: the JSON of its requests and responses."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import is_, not_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticUseDefault

from app.api.client_address import ClientAddress
from app.verification import model
from app.verification.channels import Channel
from app.verification.code import normalize_code
from app.verification.model import CallStatus, Lang, Status
from app.verification.typed_text import drop_invisible, require_visible

if TYPE_CHECKING:
    from fastapi.openapi.models import Example

_ID = "vrf_0a11b22c33d44e55f667788"
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)


def _require_date_time(value: object) -> object:
    """Return a date-time of RFC 3339 for pydantic to read. Raises ValueError."""
    if isinstance(value, str) and _DATE_TIME.fullmatch(value):
        return value
    raise PydanticCustomError("datetime_type", "Input should be a date-time of RFC 3339, such as 2026-01-30T00:00:00Z")


# Text that a person typed: invisible characters do not count as its length.
_Typed = Annotated[str, BeforeValidator(lambda value: drop_invisible(value) if isinstance(value, str) else value)]
_PHONE = "any spelling of a Russian mobile number"
PhoneText = Annotated[_Typed, Field(min_length=1, max_length=32, description=_PHONE, examples=["8 (900) 123-45-67"])]
Purpose = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9_]{0,31}$",
        description="what the code is for; a code given for one purpose verifies no other",
        examples=["password_reset"],
    ),
]
Code = Annotated[
    _Typed,
    Field(
        max_length=32,
        description="4 to 6 digits of any script; spaces and punctuation are ignored. Of a whole phone number, as a"
        " `flash_call` shows it, the last four digits count",
        examples=["123 456"],
    ),
    AfterValidator(normalize_code),
]
TestFlag = Annotated[
    bool, Field(description="only for a test number, true: nobody was called, and nothing is proved", exclude_if=not_)
]
# Pydantic also takes seconds since 1970, and a day or a time without an offset, each of which one may mean otherwise.
Moment = Annotated[AwareDatetime, BeforeValidator(_require_date_time)]
_is_none = partial(is_, None)
VisibleText = Annotated[
    str,
    Field(min_length=1, max_length=64),
    AfterValidator(require_visible),
]
ReferenceView = Annotated[
    str | None, Field(description="of the start; left out without one", examples=["order-1024"], exclude_if=_is_none)
]
_CLOCK_SKEW = timedelta(minutes=1)  # of the client's clock
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _use_default_for_null(value: object) -> object:
    if value is None:
        raise PydanticUseDefault
    return value


def _require_past(moment: datetime) -> datetime:
    if not _EPOCH <= moment <= datetime.now(UTC) + _CLOCK_SKEW:
        raise ValueError("must not be in the future, nor before 1970")
    return moment


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Consent(_Request):
    """Your proof that the subscriber agreed to be called."""

    version: Annotated[
        VisibleText, Field(description="of the text that the subscriber agreed to", examples=["calls-2026-01"])
    ]
    at: Annotated[
        Moment,
        AfterValidator(_require_past),
        Field(
            description="when the subscriber agreed; kept in UTC, to the millisecond", examples=["2026-01-31T08:59:30Z"]
        ),
    ]


class StartVerificationRequest(_Request):
    """The phone to call, and the purpose of the code."""

    phone: PhoneText
    purpose: Annotated[Purpose, BeforeValidator(_use_default_for_null, json_schema_input_type=Purpose | None)] = (
        "phone_verification"
    )
    verification_id: Annotated[
        str | None,
        Field(
            max_length=64,
            description="calls again for this pending verification of yours; left out, a new one is started",
            examples=[_ID],
        ),
    ] = None
    channel: Annotated[
        Channel | None,
        Field(
            description="; ".join(f"`{channel}`: {channel.rules.summary}" for channel in Channel)
            + ". Left out: as the settings say"
        ),
    ] = None
    channels: Annotated[
        list[Channel] | None,
        Field(
            min_length=1,
            max_length=len(Channel),
            description="in place of `channel`: the next is tried when one is refused, or was not answered before",
            examples=[["voice", "reverse_call"]],
        ),
    ] = None
    lang: Annotated[
        Lang,
        BeforeValidator(_use_default_for_null, json_schema_input_type=Lang | None),
        Field(description="the language in which the code is spoken"),
    ] = Lang.RU
    client_ip: ClientAddress = None
    reference: Annotated[
        VisibleText | None,
        Field(
            description="your own name for the verification, such as the id of an order. It comes back in answers,"
            " webhooks and the token, and is in the journal of attempts, as it is: no phone and no secret. A resend"
            " keeps it",
            examples=["order-1024"],
        ),
    ] = None
    consent: Annotated[
        Consent | None,
        Field(description="kept in the journal of attempts with the call; a resend without one keeps the earlier"),
    ] = None

    @model_validator(mode="after")
    def _names_channels_once(self) -> Self:
        if self.channel is not None and self.channels is not None:
            raise ValueError("give either channel or channels")
        return self

    @property
    def wanted_channels(self) -> tuple[Channel, ...]:
        """The channels in the order in which they are tried; empty for those of the settings."""
        return (self.channel,) if self.channel else tuple(dict.fromkeys(self.channels or ()))


class _Check(_Request):
    code: Annotated[Code | None, Field(description="left out only for a `reverse_call`, which has none")] = None


_VerificationId = Annotated[str, Field(max_length=64, examples=[_ID])]
_CheckPurpose = Annotated[Purpose | None, Field(description="`phone_verification` if left out")]


class CheckById(_Check):
    """The typed code, and the id of its verification."""

    verification_id: _VerificationId
    client_ip: ClientAddress = None


class CheckByPhone(_Check):
    """The typed code, and the phone and purpose of its verification."""

    phone: PhoneText
    purpose: _CheckPurpose = None
    client_ip: ClientAddress = None


class CheckVerificationRequest(_Check):
    """The typed code, and its verification: by id, or by phone and purpose.

    Described as the union of ``CheckById`` and ``CheckByPhone``, for generated clients. Parsed as one model, because a
    union reports errors for the fields of both.
    """

    verification_id: _VerificationId | None = None
    phone: PhoneText | None = None
    purpose: _CheckPurpose = None
    client_ip: ClientAddress = None

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.verification_id is None) == (self.phone is None):
            raise ValueError("give either verification_id or phone")
        if self.purpose is not None and self.phone is None:
            raise ValueError("purpose goes with phone; a verification_id has its own")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of the union; ``oneOf``, because neither model allows the fields of the other."""
        return {"oneOf": handler(TypeAdapter(CheckById | CheckByPhone).core_schema)["anyOf"]}


def example_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return an example of a wire model, made of those of its fields."""
    example = {}
    for name, field in model.model_fields.items():
        value = field.examples[0] if field.examples else field.get_default(call_default_factory=True)
        if not (field.exclude_if and field.exclude_if(value)):
            example[name] = value
    return example


def example(summary: str, **value: object) -> "Example":
    """Return an example of a request body."""
    return {"summary": summary, "value": value}


# Each start has a phone of its own, for the same phone could not be called again before its cooldown.
START_EXAMPLES = {
    "sign-up": example("Sign-up: call and speak Russian", phone="8 (900) 123-45-67"),
    "order": example(
        "For an order, with the subscriber's consent",
        phone="+79005678901",
        reference="order-1024",
        consent={"version": "calls-2026-01", "at": "2026-01-31T11:59:30+03:00"},
    ),
    "resend": example("Call again for a pending verification", phone="8 (900) 123-45-67", verification_id=_ID),
    "password": example("Password recovery, in English", phone="+79004567890", purpose="password_reset", lang="en"),
    "flash-call": example(
        "Flash call: the code is in the number that calls", phone="+79002345678", channel="flash_call"
    ),
    "reverse-call": example("Reverse call: the person dials a number", phone="+79003456789", channel="reverse_call"),
}
CHECK_EXAMPLES = {
    "by-id": example("By the id that start returned", verification_id=_ID, code="123 456"),
    "by-phone": example("By phone and purpose", phone="+79004567890", purpose="password_reset", code="123456"),
}


class _Answer(BaseModel):
    # A member that every response carries is described as required, even if it has a default.
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class RecordedConsent(BaseModel):
    """Your proof that the subscriber agreed to be called."""

    model_config = ConfigDict(from_attributes=True)

    version: Annotated[str, Field(examples=["calls-2026-01"])]
    at: Annotated[datetime, Field(examples=["2026-01-31T08:59:30Z"])]


class Call(BaseModel):
    """The latest call."""

    status: CallStatus
    provider_status: Annotated[
        str | None, Field(description="the provider's own word, if this service does not know it", exclude_if=_is_none)
    ] = None


class Verification(_Answer):
    """A verification."""

    verification_id: Annotated[str, Field(examples=[_ID])]
    status: Annotated[
        Status,
        Field(
            description="`pending` until it is `verified`, `locked` by wrong codes or `canceled`; `failed` as long as"
            " all its calls have failed: start again, by another channel if you can",
            examples=["pending"],
        ),
    ]
    purpose: Annotated[str, Field(examples=["phone_verification"])]
    channel: Annotated[Channel, Field(examples=["voice"])]
    phone: Annotated[str, Field(description="masked", examples=["+7900•••4567"])]
    code_length: Annotated[int | None, Field(description="null where no code is needed", examples=[6])]
    calls_placed: Annotated[int, Field(examples=[1])]
    calls_left: Annotated[
        int, Field(description="further calls that it may place; a `reverse_call` is the only one", examples=[2])
    ]
    checks_left: Annotated[int, Field(description="wrong codes left before it locks", examples=[5])]
    test: TestFlag = False
    dial: Annotated[
        str | None,
        Field(description="the number to call, such as `+78005550100`; only for a `reverse_call`", exclude_if=_is_none),
    ] = None
    call: Annotated[Call | None, Field(description="the latest", examples=[{"status": "initiated"}])]
    created_at: Annotated[datetime, Field(examples=["2026-01-31T09:00:00Z"])]
    expires_at: Annotated[datetime, Field(description="when its last code expires", examples=["2026-01-31T09:05:00Z"])]
    expires_in: Annotated[int, Field(description="the same, in seconds from now", examples=[300])]
    resend_in: Annotated[
        int | None,
        Field(description="seconds until a `start` may call again for it; null: never", examples=[60]),
    ]
    reference: ReferenceView = None
    consent: Annotated[
        RecordedConsent | None,
        Field(
            description="the latest that you gave; left out without any",
            examples=[{"version": "calls-2026-01", "at": "2026-01-31T08:59:30Z"}],
            exclude_if=_is_none,
        ),
    ] = None


class Verified(_Answer):
    """The code was correct: the person holds the phone."""

    verified: Literal[True] = True
    status: Literal[Status.VERIFIED] = Status.VERIFIED
    verification_id: Annotated[str, Field(examples=[_ID])]
    purpose: Annotated[str, Field(examples=["phone_verification"])]
    phone: Annotated[str, Field(description="E.164, in full", examples=["+79001234567"])]
    token: Annotated[
        str,
        Field(
            description="the proof, a JWT under ES256: verify it with `/.well-known/jwks.json`, or redeem it",
            examples=["eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiJ9.eyJzdWIiOiIrNzkwMDEyMzQ1NjcifQ.c2lnbmF0dXJl"],
        ),
    ]
    token_expires_in: Annotated[int, Field(description="seconds", examples=[600])]
    test: TestFlag = False
    reference: ReferenceView = None


class NotVerified(_Answer):
    """The code was wrong, and further checks are left; or, for a `reverse_call`, the person has not called yet."""

    verified: Literal[False] = False
    status: Literal[Status.PENDING] = Status.PENDING
    verification_id: Annotated[str, Field(examples=[_ID])]
    checks_left: Annotated[int, Field(examples=[4])]
    reference: ReferenceView = None


class Locked(_Answer):
    """The code was wrong, and no check is left."""

    verified: Literal[False] = False
    status: Literal[Status.LOCKED] = Status.LOCKED
    verification_id: Annotated[str, Field(examples=[_ID])]
    checks_left: Literal[0] = 0
    retry_after: Annotated[int, Field(description="seconds until a new one can be started", examples=[42])]
    reference: ReferenceView = None


CheckView = Annotated[Verified | NotVerified | Locked, Field(discriminator="status")]


# The views return the members of a wire model: to make the model itself would cost more than to write them as JSON.
# An enum is made a text here, because pydantic looks its value up in ten times the time.


def view_verification(verification: model.Verification) -> Mapping[str, object]:
    """Return the members of a ``Verification``."""
    call, consent = verification.latest_call, verification.consent
    return {
        "verification_id": verification.id,
        "status": str(verification.status),
        "purpose": verification.purpose,
        "channel": str(verification.channel),
        "phone": verification.phone.masked,
        "code_length": verification.code_length,
        "calls_placed": verification.calls_placed,
        "calls_left": verification.calls_left,
        "checks_left": verification.checks_left,
        **({"test": True} if verification.test else {}),
        **({"dial": call.dial.e164} if call and call.dial else {}),
        "call": _view_call(call.state) if call else None,
        "created_at": verification.created_at,
        "expires_at": verification.expires_at,
        "expires_in": verification.expires_in,
        "resend_in": verification.resend_in,
        **_view_reference(verification.reference),
        **({"consent": {"version": consent.version, "at": consent.at}} if consent else {}),
    }


def _view_reference(reference: str | None) -> Mapping[str, object]:
    return {} if reference is None else {"reference": reference}


def _view_call(state: model.CallState) -> Mapping[str, object]:
    unknown = {} if state.provider_status is None else {"provider_status": state.provider_status}
    return {"status": str(state.status), **unknown}


def view_check(result: model.CheckResult) -> Mapping[str, object]:
    """Return the members of a ``CheckView``."""
    members: dict[str, object] = {
        "verified": result.status is Status.VERIFIED,
        "status": str(result.status),
        "verification_id": result.verification_id,
    }
    match result:
        case model.WrongCode() | model.Waiting():
            members["checks_left"] = result.checks_left
        case model.Locked():
            members |= {"checks_left": 0, "retry_after": result.retry_after}
        case model.Verified():
            members |= {
                "purpose": result.purpose,
                "phone": result.phone.e164,
                "token": result.token,
                "token_expires_in": int(result.token_lifetime.total_seconds()),
                **({"test": True} if result.test else {}),
            }
    if result.reference is not None:
        members["reference"] = result.reference
    return members
