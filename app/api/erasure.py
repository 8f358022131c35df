"""The operator's route of erasure: erase what is stored about a phone."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.audit import Audited
from app.api.dependencies import ADMIN_KEY, ContainerDep
from app.api.responses import JsonAnswer, answers
from app.api.schemas import PhoneText
from app.verification.phone import parse_phone

router = APIRouter(prefix="/admin/phones", tags=["admin"], dependencies=[ADMIN_KEY])


class ErasePhoneRequest(BaseModel):
    """The phone to erase."""

    model_config = ConfigDict(extra="forbid")

    phone: PhoneText


class ErasedPhone(BaseModel):
    """How much was erased."""

    model_config = ConfigDict(from_attributes=True)

    phone: Annotated[bool, Field(description="whether the phone had a record of its own", examples=[True])]
    verifications: Annotated[int, Field(examples=[1])]
    calls: Annotated[int, Field(description="of these verifications", examples=[2])]
    events: Annotated[int, Field(description="webhooks that were not delivered", examples=[0])]
    answers: Annotated[int, Field(description="kept for an `Idempotency-Key`", examples=[1])]
    attempts: Annotated[int, Field(description="of the journal", examples=[5])]


@router.post(
    "/erase",
    response_model=ErasedPhone,
    operation_id="erasePhone",
    dependencies=[Audited],
    summary="Erase a phone",
    responses=answers(
        HTTPStatus.OK, ErasedPhone,
        problems=("validation-failed", "unauthorized", "phone-not-callable", "store-unavailable"),
    ),
)  # fmt: skip
async def erase(body: Annotated[ErasePhoneRequest, Body()], container: ContainerDep) -> Response:
    """Erase all that is stored about a phone: verifications, undelivered events, kept answers and attempts.

    What stays identifies no person, as does the record in the audit. Logs have no phone; webhooks that were delivered
    stay with their receiver. It searches the whole database, which may take seconds. After a 503 some of it may be
    erased: repeat it.
    """
    return JsonAnswer(ErasedPhone.model_validate(await container.stores.phone_eraser.erase(parse_phone(body.phone))))
