"""The operator's routes of attempts: find out what became of a call."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import Annotated, Self

from fastapi import APIRouter, Body, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from app.api.dependencies import ADMIN_KEY, ContainerDep
from app.api.responses import JsonAnswer, answers, example_of, plain_answer
from app.api.schemas import Moment, PhoneText, RecordedConsent
from app.verification.attempts import AttemptFilter, AttemptJournal, Ending, Outcome, Result
from app.verification.channels import Channel
from app.verification.model import CallStatus
from app.verification.phone import Phone, parse_phone

router = APIRouter(prefix="/admin/attempts", tags=["admin"], dependencies=[ADMIN_KEY])

_ID = "vrf_0a11b22c33d44e55f667788"
_LONGEST_PAGE = 200
_DAY = timedelta(days=1)


class _View(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class TimelineEntry(_View):
    """What happened to an attempt at a moment."""

    at: Annotated[datetime, Field(examples=["2026-01-31T09:00:02Z"])]
    event: Annotated[
        str,
        Field(description="a word of `outcome`, `call_status` or `ending`, or `wrong_code`", examples=["no_answer"]),
    ]
    reason: Annotated[str, Field(description="what the provider said, if anything", examples=[""])]


class Attempt(_View):
    """One call of a verification: a resend is another attempt of the same verification."""

    verification_id: Annotated[str, Field(examples=[_ID])]
    call_number: Annotated[int, Field(examples=[1])]
    started_at: Annotated[datetime, Field(examples=["2026-01-31T09:00:00Z"])]
    client: Annotated[str, Field(examples=["shop"])]
    purpose: Annotated[str, Field(examples=["phone_verification"])]
    reference: Annotated[str | None, Field(description="the client's own name for it", examples=["order-1024"])]
    consent: Annotated[
        RecordedConsent | None,
        Field(description="the latest that the client had given by then", examples=[example_of(RecordedConsent)]),
    ]
    channel: Annotated[str, Field(examples=["voice"])]
    phone: Annotated[str, Field(description="masked", examples=["+7900•••4567"])]
    phone_digest: Annotated[
        str, Field(description="the same for all attempts to call a phone", examples=["5c2Hh0Nm4p8bV"])
    ]
    outcome: Annotated[Outcome, Field(description="what the provider made of it", examples=[Outcome.PLACED])]
    reason: Annotated[str, Field(description="why it was refused, in the provider's words", examples=[""])]
    call_ref: Annotated[str | None, Field(description="the provider's id of the call", examples=["8213"])]
    operator: Annotated[
        str, Field(description="that the phone's range is assigned to, as in the statistics", examples=["mts"])
    ]
    reported_operator: Annotated[
        str | None, Field(description="of the phone, if the provider says it", examples=["мтс москва"])
    ]
    call_status: Annotated[CallStatus | None, Field(examples=[CallStatus.NO_ANSWER])]
    wrong_codes: Annotated[int, Field(description="of the verification", examples=[0])]
    ending: Annotated[
        Ending | None, Field(description="of the verification; null if it has no call", examples=[Ending.EXPIRED])
    ]
    cost_rub: Annotated[Decimal, Field(description="at the price of the settings", examples=["3"])]
    timeline: Annotated[list[TimelineEntry], Field(examples=[[example_of(TimelineEntry)]])]


class Attempts(_View):
    """The attempts of a verification, the oldest first."""

    attempts: Annotated[list[Attempt], Field(examples=[[example_of(Attempt)]])]


class AttemptPage(_View):
    """Attempts, the latest first."""

    attempts: Annotated[list[Attempt], Field(examples=[[example_of(Attempt)]])]
    next_before: Annotated[
        datetime | None,
        Field(description="the `before` of the next page; null: there is none", examples=["2026-01-31T08:00:00Z"]),
    ]


class RefusedStarts(_View):
    """How many starts of a phone were refused in an hour before a provider was asked."""

    hour: Annotated[datetime, Field(description="when the hour begins", examples=["2026-01-31T09:00:00Z"])]
    reason: Annotated[
        str,
        Field(
            description="the limit that refused them, or `provider_unavailable` or `provider_balance_too_low`",
            examples=["call_cooldown"],
        ),
    ]
    count: Annotated[int, Field(examples=[2])]


class PhoneAttempts(_View):
    """The attempts to call a phone, and how many other starts were refused, the latest first."""

    attempts: Annotated[list[Attempt], Field(examples=[[example_of(Attempt)]])]
    refused_starts: Annotated[list[RefusedStarts], Field(examples=[[example_of(RefusedStarts)]])]

    @classmethod
    async def of(cls, attempts: AttemptJournal, phone: Phone, since: datetime) -> Self:
        """Return what is known of a phone since then. Raises StoreUnavailable."""
        found = await attempts.of_phone(phone, since), await attempts.refused_starts(phone, since)
        return cls.model_validate(dict(zip(cls.model_fields, found, strict=True)))


class FindAttemptsRequest(BaseModel):
    """The phone in question."""

    model_config = ConfigDict(extra="forbid")

    phone: PhoneText
    since: Annotated[
        Moment | None, Field(description="the earliest begin; left out: all", examples=["2026-01-30T00:00:00Z"])
    ] = None


class AttemptQuery(BaseModel):
    """Filters of attempts, and the page of them."""

    model_config = ConfigDict(extra="forbid")

    client: Annotated[str | None, Field(description="of this client alone")] = None
    channel: Annotated[Channel | None, Field(description="by this channel alone")] = None
    operator: Annotated[str | None, Field(description="to phones with this `operator` alone")] = None
    reference: Annotated[str | None, Field(description="of verifications with this reference alone")] = None
    outcome: Annotated[Result | None, Field(description="with this word as `outcome`, `call_status` or `ending`")] = (
        None
    )
    since: Annotated[Moment | None, Field(description="the earliest begin; left out: a day ago")] = None
    before: Annotated[Moment | None, Field(description="`next_before` of the page before")] = None
    limit: Annotated[int, Field(ge=1, le=_LONGEST_PAGE, description="about how many")] = 50


@router.get(
    "",
    response_model=AttemptPage,
    operation_id="listAttempts",
    summary="List attempts to call",
    responses=answers(HTTPStatus.OK, AttemptPage, problems=("validation-failed", "unauthorized", "store-unavailable")),
)
async def list_attempts(container: ContainerDep, query: Annotated[AttemptQuery, Query()]) -> Response:
    """Return the latest attempts that fit all filters. A page may have fewer of them, even none, and a next one."""
    now = datetime.now(UTC)
    page = await container.stores.attempts.page(
        AttemptFilter(
            client=query.client,
            channel=query.channel,
            operator=query.operator,
            reference=query.reference,
            result=query.outcome,
        ),
        since=query.since or now - _DAY,
        before=query.before or now,
        most=query.limit,
    )
    return JsonAnswer(AttemptPage.model_validate(page))


@router.post(
    "/find",
    response_model=PhoneAttempts,
    operation_id="findAttempts",
    summary="Find the attempts to call a phone",
    responses=answers(
        HTTPStatus.OK, PhoneAttempts,
        problems=("validation-failed", "unauthorized", "phone-not-callable", "store-unavailable"),
    ),
)  # fmt: skip
async def find(body: Annotated[FindAttemptsRequest, Body()], container: ContainerDep) -> Response:
    """Return all attempts to call a phone. It is a POST, so that no log of a proxy has the phone."""
    since = body.since or datetime.min.replace(tzinfo=UTC)
    return JsonAnswer(await PhoneAttempts.of(container.stores.attempts, parse_phone(body.phone), since))


@router.get(
    "/{verification_id}",
    response_model=Attempts,
    operation_id="getAttempts",
    summary="Read the attempts of a verification",
    responses={
        **answers(HTTPStatus.OK, Attempts, problems=("unauthorized", "store-unavailable")),
        HTTPStatus.NOT_FOUND.value: plain_answer(HTTPStatus.NOT_FOUND),
    },
)
async def read(verification_id: str, container: ContainerDep) -> Response:
    """Return each call of a verification, and what happened to it. 404 if the journal has none (`JOURNAL_DAYS`)."""
    found = await container.stores.attempts.of_verification(verification_id)
    if not found:
        raise HTTPException(HTTPStatus.NOT_FOUND, "The journal has no such verification.")
    return JsonAnswer(Attempts.model_validate({"attempts": found}))
