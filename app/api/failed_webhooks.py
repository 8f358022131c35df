"""The operator's routes of the webhooks that were given up: list them, and send one again."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Response
from starlette.exceptions import HTTPException

from app.api.audit import Audited
from app.api.dependencies import ADMIN_KEY, ContainerDep
from app.api.operator_schemas import FailedWebhook, FailedWebhooks
from app.api.responses import JsonAnswer, answers, plain_answer

router = APIRouter(prefix="/admin/webhooks/failed", tags=["admin"], dependencies=[ADMIN_KEY])


@router.get(
    "",
    response_model=FailedWebhooks,
    operation_id="listFailedWebhooks",
    summary="List the webhooks that were given up",
    responses=answers(HTTPStatus.OK, FailedWebhooks, problems=("unauthorized", "store-unavailable")),
)
async def list_failed(container: ContainerDep) -> Response:
    """Return the events that no attempt could deliver."""
    letters = await container.stores.webhooks.dead_letters()
    return JsonAnswer(FailedWebhooks(events=[FailedWebhook.of(letter) for letter in letters]))


@router.post(
    "/{event_id}/resend",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    operation_id="resendWebhook",
    dependencies=[Audited],
    summary="Send a webhook again that was given up",
    responses={
        **answers(HTTPStatus.NO_CONTENT, problems=("unauthorized", "store-unavailable")),
        HTTPStatus.NOT_FOUND.value: plain_answer(HTTPStatus.NOT_FOUND),
    },
)
async def resend(
    event_id: Annotated[str, Path(description="an id, as in the list", examples=["msg_0a11b22c33d44e55f667788-3"])],
    container: ContainerDep,
) -> Response:
    """Send an event again, with all its attempts. 404 if it was not given up."""
    if not await container.stores.webhooks.resend(event_id):
        raise HTTPException(HTTPStatus.NOT_FOUND, "No such event was given up.")
    return Response(status_code=HTTPStatus.NO_CONTENT)
