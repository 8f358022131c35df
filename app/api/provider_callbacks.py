"""The route at which Plusofon tells that somebody dialled the number of a reverse call."""

import json
import logging
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from app.api.client_address import read_address
from app.api.dependencies import Service
from app.verification.errors import PhoneNotCallable
from app.verification.phone import Phone, parse_phone
from app.verification.ports import Confirmation

log = logging.getLogger(__name__)

router = APIRouter(prefix="/hooks", tags=["hooks"], include_in_schema=False)


class _Hook(BaseModel):
    """What handlers of public clients read (seen): the ``key`` that start was answered, and a phone."""

    model_config = ConfigDict(coerce_numbers_to_str=True, extra="ignore")

    key: str = Field(min_length=1, max_length=128)
    phone: str = Field(min_length=1, max_length=32)


@router.post("/plusofon/{secret}")
async def plusofon_hook(secret: str, request: Request, service: Service) -> Response:
    """Take the provider's word that a person dialled.

    No signature comes with a hook, so its URL is a secret that belongs to one call. A first hook may come that only
    repeats the number to dial (open): a hook confirms only if it names the call and the phone of the person, and comes
    no sooner than anybody can dial. Whatever it says it is answered alike, for the provider can do nothing about it.
    """
    name = request.state.callback_urls.read(secret)
    if name is None or not _is_allowed(request):
        log.warning("hook.refused", extra={"known": name is not None, "address": _address(request)})
        raise HTTPException(HTTPStatus.NOT_FOUND)
    hook = _read(await request.body())
    caller = _phone(hook.phone)
    confirmation = Confirmation.NOT_THE_CALLER
    if caller:
        confirmation = await service.calls.confirm_reverse_call(name, ref=hook.key, caller=caller)
    log.info("hook.received", extra={"verification_id": name.verification_id, "outcome": str(confirmation)})
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _is_allowed(request: Request) -> bool:
    """Return whether a hook comes from where hooks may come from; anywhere, if nothing is said about it."""
    networks = request.state.callback_networks
    try:
        address = read_address(_address(request))
        return not networks or any(address in network for network in networks if address)
    except ValueError:
        return False


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _read(content: bytes) -> _Hook:
    """Read JSON or form fields: both were seen, whatever the Content-Type said."""
    try:
        return _Hook.model_validate(_fields(content))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found]) from None


def _fields(content: bytes) -> Any:  # noqa: ANN401 - whatever was sent
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    try:
        return dict(parse_qsl(content.decode(errors="replace"), max_num_fields=20))
    except ValueError:  # more fields than that
        return {}


def _phone(text: str) -> Phone | None:
    try:
        return parse_phone(text)
    except PhoneNotCallable:
        return None
