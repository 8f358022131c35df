"""The operator's routes of attempts: find out what became of a call."""

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from app.api.dependencies import ADMIN_KEY, ContainerDep
from app.api.operator_schemas import AttemptPage, Attempts, PhoneAttempts
from app.api.responses import JsonAnswer, answers, plain_answer
from app.api.schemas import Moment, PhoneText
from app.verification.attempts import AttemptFilter, Result
from app.verification.channels import Channel
from app.verification.phone import parse_phone

router = APIRouter(prefix="/admin/attempts", tags=["admin"], dependencies=[ADMIN_KEY])

_LONGEST_PAGE = 200
_DAY = timedelta(days=1)


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
