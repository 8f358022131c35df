"""The route that shows the account at the provider."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from app.api.dependencies import ADMIN_KEY, ContainerDep
from app.api.responses import JsonAnswer, answers

router = APIRouter(prefix="/provider", tags=["provider"], dependencies=[ADMIN_KEY])


class ProviderAccount(BaseModel):
    """An account at the provider; never its token."""

    id: Annotated[str, Field(examples=["7"])]
    name: Annotated[str, Field(examples=["Sandbox"])]


class ProviderOverview(BaseModel):
    """The provider's accounts and the balance."""

    accounts: Annotated[list[ProviderAccount], Field(examples=[[{"id": "7", "name": "Sandbox"}]])]
    balance_rub: Annotated[float | None, Field(description="null when unknown, which is not low", examples=[120.5])]


@router.get(
    "/account",
    response_model=ProviderOverview,
    operation_id="getProviderAccount",
    summary="Read the provider's account and balance",
    responses=answers(
        HTTPStatus.OK, ProviderOverview, problems=("unauthorized", "provider-rejected", "provider-unavailable")
    ),
)
async def account(container: ContainerDep) -> Response:
    """Return the accounts, without their tokens, and the balance in RUB."""
    overview = await container.providers.account_reader.read()
    return JsonAnswer(ProviderOverview.model_validate(overview, from_attributes=True))
