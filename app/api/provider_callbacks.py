"""The route for Plusofon's callbacks: the person dialled the number of a reverse call."""

import json
import logging
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from app.api.client_address import read_address
from app.api.dependencies import Service
from app.api.routing import invalid_body
from app.verification.errors import PhoneNotCallable
from app.verification.phone import parse_phone
from app.verification.ports import Confirmation

log = logging.getLogger(__name__)

router = APIRouter(prefix="/hooks", tags=["hooks"], include_in_schema=False)


class _Hook(BaseModel):
    """The fields that handlers of public clients read (seen): the ``key`` that start was answered, and a phone."""

    model_config = ConfigDict(coerce_numbers_to_str=True, extra="ignore")

    key: str = Field(min_length=1, max_length=128)
    phone: str = Field(min_length=1, max_length=32)


@router.post("/plusofon/{secret}")
async def plusofon_hook(secret: str, request: Request, service: Service) -> Response:
    """Confirm a reverse call, because the provider reports that the person dialled.

    A callback is not signed, so its URL is a secret that belongs to one call. The first callback may only repeat the
    number to dial (open): one confirms only if it has the key of the call and the phone of the person, and comes no
    sooner than anybody can dial. Any valid one is answered alike, for the provider can do nothing about it.
    """
    name = request.state.callback_urls.read(secret)
    if name is None or not _is_allowed(request):
        log.warning("hook.refused", extra={"known": name is not None, "address": _address(request)})
        raise HTTPException(HTTPStatus.NOT_FOUND)
    try:
        hook = _Hook.model_validate(_fields(await request.body()))
    except ValidationError as error:
        raise invalid_body(error) from None
    try:
        confirmation = await service.confirm_reverse_call(name, ref=hook.key, caller=parse_phone(hook.phone))
    except PhoneNotCallable:
        confirmation = Confirmation.NOT_THE_CALLER
    log.info("hook.received", extra={"verification_id": name.verification_id, "outcome": str(confirmation)})
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _is_allowed(request: Request) -> bool:
    """Return whether callbacks are accepted from the address of a request: from any, if no networks are set."""
    networks = request.state.callback_networks
    try:
        address = read_address(_address(request))
        return not networks or any(address in network for network in networks if address)
    except ValueError:
        return False


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _fields(content: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Read JSON or form fields: both were seen, whatever the Content-Type said."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    try:
        return dict(parse_qsl(content.decode(errors="replace"), max_num_fields=20))
    except ValueError:  # more fields than that
        return {}
