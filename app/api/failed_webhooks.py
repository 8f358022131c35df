"""The operator's routes of the webhooks that were given up: list them, and send one again."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Self

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app.api.audit import Audited
from app.api.dependencies import ADMIN_KEY, ContainerDep
from app.api.responses import JsonAnswer, answers, example_of, plain_answer
from app.verification.webhooks import DeadLetter

router = APIRouter(prefix="/admin/webhooks/failed", tags=["admin"], dependencies=[ADMIN_KEY])
_ID = "msg_0a11b22c33d44e55f667788-3"


class FailedWebhook(BaseModel):
    """An event that was given up after its last attempt; without the phone."""

    id: Annotated[str, Field(examples=[_ID])]
    type: Annotated[str, Field(examples=["verification.verified"])]
    client: Annotated[str, Field(examples=["shop"])]
    verification_id: Annotated[str, Field(examples=["vrf_0a11b22c33d44e55f667788"])]
    attempts: Annotated[int, Field(examples=[9])]
    error: Annotated[str, Field(description="of the last attempt", examples=["status 500"])]
    happened_at: Annotated[datetime, Field(examples=["2026-01-31T09:00:00Z"])]
    given_up_at: Annotated[datetime, Field(examples=["2026-02-01T12:00:00Z"])]

    @classmethod
    def of(cls, letter: DeadLetter) -> Self:
        """Return what an operator needs of a dead letter; its moments to the second."""
        event = letter.event
        return cls(
            id=event.id,
            type=event.type,
            client=event.client,
            verification_id=event.verification_id,
            attempts=letter.attempts,
            error=letter.error,
            happened_at=event.at.replace(microsecond=0),
            given_up_at=letter.died_at.replace(microsecond=0),
        )


class FailedWebhooks(BaseModel):
    """The events that were given up."""

    events: Annotated[
        list[FailedWebhook], Field(description="the oldest first", examples=[[example_of(FailedWebhook)]])
    ]


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
    event_id: Annotated[str, Path(description="an id, as in the list", examples=[_ID])], container: ContainerDep
) -> Response:
    """Send an event again, with all its attempts. 404 if it was not given up."""
    if not await container.stores.webhooks.resend(event_id):
        raise HTTPException(HTTPStatus.NOT_FOUND, "No such event was given up.")
    return Response(status_code=HTTPStatus.NO_CONTENT)
