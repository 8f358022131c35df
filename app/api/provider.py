"""The route that shows the account at the provider."""

from http import HTTPStatus

from fastapi import APIRouter, Response

from app.api.dependencies import Client, Service
from app.api.docs import answers, respond
from app.api.schemas import AccountView, ProviderView

router = APIRouter(prefix="/provider", tags=["provider"])


@router.get(
    "/account",
    response_model=ProviderView,
    summary="Read the provider's account and balance",
    responses=answers(
        HTTPStatus.OK, ProviderView, problems=("unauthorized", "provider-rejected", "provider-unavailable")
    ),
)
async def account(client: Client, service: Service) -> Response:  # noqa: ARG001 - asked for, so that only clients see it
    """Tell the accounts, without their tokens, and the balance in RUB."""
    overview = await service.provider_overview()
    balance = overview.balance_rub
    return respond(
        ProviderView(
            accounts=[AccountView(id=found.id, name=found.name) for found in overview.accounts],
            balance_rub=None if balance is None else float(balance),
        )
    )
