"""The operator's routes of the fraud guard: list the blocked ranges of numbers, and lift a block."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Response
from starlette.exceptions import HTTPException

from app.api.audit import Audited
from app.api.dependencies import ADMIN_KEY, ContainerDep
from app.api.operator_schemas import FraudGuardReport
from app.api.responses import JsonAnswer, answers, plain_answer

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[ADMIN_KEY])


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
    number_range: Annotated[str, Path(alias="range", description="a range, as in the list", examples=["+79001234"])],
    container: ContainerDep,
) -> Response:
    """Allow calls to the range at once; its next block has level 1 again. 404 if it is not blocked."""
    if not await container.stores.fraud_guard.lift(number_range):
        raise HTTPException(HTTPStatus.NOT_FOUND, "This range is not blocked.")
    return Response(status_code=HTTPStatus.NO_CONTENT)
