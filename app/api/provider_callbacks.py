"""The route for Plusofon's callbacks: the person dialled the number of a reverse call."""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from app.api.client_address import read_address
from app.api.dependencies import ContainerDep
from app.api.routing import invalid_body
from app.verification import log_context
from app.verification.errors import PhoneNotCallable
from app.verification.phone import parse_phone
from app.verification.ports import Confirmation

log = logging.getLogger(__name__)

router = APIRouter(prefix="/hooks", tags=["hooks"], include_in_schema=False)


class _Callback(BaseModel):
    """The fields that handlers of public clients read (seen): the ``key`` that start was answered, and a phone."""

    model_config = ConfigDict(coerce_numbers_to_str=True, extra="ignore")

    key: str = Field(min_length=1, max_length=128)
    phone: str = Field(min_length=1, max_length=32)


@router.post("/plusofon/{secret}")
async def plusofon_callback(secret: str, request: Request, container: ContainerDep) -> Response:
    """Confirm a reverse call, because the provider reports that the person dialled.

    A callback is not signed, so its URL is a secret that belongs to one call. The first callback may only repeat the
    number to dial (open): one confirms only if it has the key of the call and the phone of the person, and comes no
    sooner than a person can dial. The response is the same in any case, for the provider can do nothing about it.
    """
    name = container.providers.callback_urls.read(secret)
    address = request.client.host if request.client else ""
    if name is None or not _is_allowed(address, container.callback_networks):
        log.warning("provider_callback.refused", extra={"known": name is not None, "address": address})
        raise HTTPException(HTTPStatus.NOT_FOUND)
    try:
        callback = _Callback.model_validate(_fields(await request.body()))
    except ValidationError as error:
        raise invalid_body(error) from None
    log_context.bind(verification_id=name.verification_id)
    try:
        confirmation = await container.service.calls.confirm_reverse_call(
            name, ref=callback.key, caller=parse_phone(callback.phone)
        )
    except PhoneNotCallable:
        confirmation = Confirmation.NOT_THE_CALLER
    log.info("provider_callback.received", extra={"outcome": confirmation})
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _is_allowed(text: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Return whether callbacks are accepted from an address: from any, if no networks are set."""
    try:
        address = read_address(text)
    except ValueError:
        return False
    return not networks or any(address in network for network in networks if address)


def _fields(content: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Read JSON or form fields: both were seen, whatever the Content-Type said."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        with suppress(ValueError):  # too many fields
            return dict(parse_qsl(content.decode(errors="replace"), max_num_fields=20))
        return {}
