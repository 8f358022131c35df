"""The route that shows the account at the provider."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Request, Response, Security

from app.api.auth import admin_key
from app.api.docs import answers, respond
from app.api.schemas import ProviderAccount, ProviderOverview

Reader = Annotated[str, Security(admin_key("account_keys"))]

router = APIRouter(prefix="/provider", tags=["provider"])


@router.get(
    "/account",
    response_model=ProviderOverview,
    operation_id="getProviderAccount",
    summary="Read the provider's account and balance",
    responses=answers(
        HTTPStatus.OK, ProviderOverview, problems=("unauthorized", "provider-rejected", "provider-unavailable")
    ),
)
async def account(reader: Reader, request: Request) -> Response:  # noqa: ARG001 - asked for, so that only operators see it
    """Return the accounts, without their tokens, and the balance in RUB.

    For a key of `ADMIN_KEYS`; in sandbox mode also without any key, as long as `API_KEYS` has none.
    """
    overview = await request.state.accounts.read()
    balance = overview.balance_rub
    return respond(
        ProviderOverview(
            accounts=[ProviderAccount(id=found.id, name=found.name) for found in overview.accounts],
            balance_rub=None if balance is None else float(balance),
        )
    )
