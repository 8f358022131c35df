"""The operator's routes of the fraud guard: list the blocked ranges of numbers, and lift a block."""

import asyncio
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Self

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app.api.audit import Audited
from app.api.dependencies import ADMIN_KEY, ContainerDep
from app.api.responses import JsonAnswer, answers, example_of, plain_answer
from app.verification.fraud_guard import FraudGuard

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[ADMIN_KEY])
_RANGE_EXAMPLE = "+79001234"


class BlockedRange(BaseModel):
    """A blocked range of a thousand numbers."""

    range: Annotated[str, Field(description="what its numbers begin with", examples=[_RANGE_EXAMPLE])]
    since: Annotated[datetime, Field(examples=["2026-01-31T09:00:00Z"])]
    until: Annotated[datetime, Field(examples=["2026-01-31T10:00:00Z"])]
    level: Annotated[int, Field(description="1 for its first block; each is twice as long", examples=[1])]
    calls: Annotated[int, Field(description="calls that were counted", examples=[24])]
    successes: Annotated[int, Field(description="verifications that succeeded", examples=[1])]


class SuspectClient(BaseModel):
    """A client with a low conversion rate. It is not blocked."""

    client: Annotated[str, Field(examples=["shop"])]
    since: Annotated[datetime, Field(examples=["2026-01-31T09:00:00Z"])]
    until: Annotated[datetime, Field(description="not reported anew before", examples=["2026-01-31T10:00:00Z"])]
    calls: Annotated[int, Field(description="calls that were counted", examples=[200])]
    successes: Annotated[int, Field(description="verifications that succeeded", examples=[8])]


class FraudGuardReport(BaseModel):
    """What the fraud guard has found."""

    blocks: Annotated[list[BlockedRange], Field(description="the oldest first", examples=[[example_of(BlockedRange)]])]
    suspects: Annotated[
        list[SuspectClient], Field(description="the oldest first", examples=[[example_of(SuspectClient)]])
    ]

    @classmethod
    async def of(cls, guard: FraudGuard) -> Self:
        """Return what the guard has found. Raises StoreUnavailable."""
        blocks, suspects = await asyncio.gather(guard.blocks(), guard.suspects())
        return cls.model_validate({"blocks": blocks, "suspects": suspects}, from_attributes=True)


@router.get(
    "/guard",
    response_model=FraudGuardReport,
    operation_id="getFraudGuardReport",
    summary="List what the fraud guard has found",
    responses=answers(HTTPStatus.OK, FraudGuardReport, problems=("unauthorized", "store-unavailable")),
)
async def list_guard(container: ContainerDep) -> Response:
    """Return the blocked ranges, and the clients with a low conversion rate (those are not blocked)."""
    return JsonAnswer(await FraudGuardReport.of(container.stores.fraud_guard))


@router.delete(
    "/guard/{range}",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    operation_id="unblockRange",
    dependencies=[Audited],
    summary="Lift the block of a range",
    responses={
        **answers(HTTPStatus.NO_CONTENT, problems=("unauthorized", "store-unavailable")),
        HTTPStatus.NOT_FOUND.value: plain_answer(HTTPStatus.NOT_FOUND),
    },
)
async def lift(
    number_range: Annotated[str, Path(alias="range", description="a range, as in the list", examples=[_RANGE_EXAMPLE])],
    container: ContainerDep,
) -> Response:
    """Allow calls to the range at once; its next block has level 1 again. 404 if it is not blocked."""
    if not await container.stores.fraud_guard.lift(number_range):
        raise HTTPException(HTTPStatus.NOT_FOUND, "This range is not blocked.")
    return Response(status_code=HTTPStatus.NO_CONTENT)
