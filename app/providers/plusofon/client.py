"""Plusofon's API over HTTP: places calls and reads their state, the accounts and the balance."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Self, TypeVar, Unpack

import httpx
from pydantic_core import to_json

from app.providers.answer import DEFAULT_RETRY_AFTER, Answer, Redactor
from app.providers.http import HEADERS, HttpOptions, ProviderHttp, Unclear, check_url, new_request
from app.providers.plusofon import wire
from app.providers.plusofon.wire import PhonePrefix
from app.verification.errors import ProviderError, ProviderRejected, ProviderUnavailable
from app.verification.model import CallOutcome, CallState, Lang, Placed, ProviderAccount, Refused, Unknown
from app.verification.phone import Phone

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_CALL = "/api/v1/flash-call/call"  # brief
_STATUS = "/api/v1/flash-call/status"  # brief
_FLASH_CALL = "/api/v1/flash-call/send"  # docs, seen
_REVERSE_CALL = "/api/v1/flash-call/call-to-auth"  # docs, seen
_ACCOUNTS = "/api/v1/flash-call"  # docs
_BALANCE = "/api/v1/payment/balance"  # seen

_PATHS = (_CALL, _STATUS, _FLASH_CALL, _REVERSE_CALL, _ACCOUNTS, _BALANCE)

_SHORTEST_SECRET = 9  # characters of a part of a URL; a shorter one is public, such as "plusofon"


class PlusofonClient:
    """A client of Plusofon's API, used by its channels and for the balance. An async context manager.

    Args:
        base_url: ``https://restapi.plusofon.ru`` (docs), or another place that speaks the same protocol.
        user_id: the ``Client`` header (brief).
        access_token: of the FlashCall account; places calls and reads their state.
        cabinet_token: for the accounts and the balance, where these take another token (seen); else ``access_token``.
        phone_prefix: how numbers begin, ``8`` (brief) or ``7`` (most public clients).
        http: see ``HttpOptions``.

    Raises:
        ValueError: an argument cannot work; its value is not repeated.

    """

    def __init__(
        self,
        *,
        base_url: str,
        user_id: str,
        access_token: str,
        cabinet_token: str | None = None,
        phone_prefix: PhonePrefix = "8",
        **http: Unpack[HttpOptions],
    ) -> None:
        url = check_url(base_url, "base_url")
        self._urls = {path: httpx.URL(url + path) for path in _PATHS}
        client = {**HEADERS, "Client": _header_value("user_id", user_id)}
        token = _header_value("access_token", access_token)
        cabinet_token = _header_value("cabinet_token", cabinet_token or access_token)
        self._call_headers = httpx.Headers(
            {**client, "Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        )
        self._cabinet_headers = httpx.Headers({**client, "Authorization": f"Bearer {cabinet_token}"})
        self._phone_prefix = phone_prefix
        self._secrets = (token, cabinet_token, user_id)
        self._redact = Redactor(self._secrets)
        self._http = ProviderHttp(
            not_reached="plusofon.not_reached", unexpected_error="plusofon.unexpected_error", **http
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def initiate_call(
        self, phone: Phone, pin: str, lang: Lang, repeat: int, *, timeout: float | None = None
    ) -> CallOutcome:
        """Have ``pin`` spoken to ``phone``, ``repeat`` times (brief).

        Never raises for what the provider or the network does. The request is written at most once, for Plusofon is not
        known to recognise a repeated one and each call is paid. ``timeout`` (seconds) may shorten the client's own.
        """
        body = {"pin": pin, "lang": lang.value, "repeat": repeat}
        return await self._place(_CALL, phone, body, wire.parse_placed_call, timeout=timeout)

    async def send_flash_call(self, phone: Phone, pin: str | None, *, timeout: float | None = None) -> CallOutcome:
        """Have ``phone`` called from a number that ends in ``pin`` (docs, seen).

        Without a ``pin`` the provider chooses one, and a call whose code did not come back is ``Unknown``. A pin that
        is not four digits is refused without a request. Else as ``initiate_call``.
        """

        def parse(answer: Answer) -> Placed:
            placed = wire.parse_flash_call(answer)
            if placed.code is None and pin is None:
                raise Unclear("a call whose code was not told")
            return placed

        if pin is not None and not wire.FLASH_PIN.fullmatch(pin):
            return Refused(ProviderRejected("not a code of four digits"))
        body = {"pin": pin} if pin is not None else {}
        return await self._place(_FLASH_CALL, phone, body, parse, timeout=timeout)

    async def call_to_auth(self, phone: Phone, callback_url: str, *, timeout: float | None = None) -> CallOutcome:
        """Ask for a number that ``phone`` is to dial (docs, seen).

        Plusofon posts to ``callback_url`` when that call came in. The URL may hold a secret: it is not logged or
        repeated.

        This places no call, and without an answer no number is dialled: so an unclear answer is ``Refused``, never
        ``Unknown``. Whether an unused number costs anything is open; the request is written at most once all the same.
        """
        parts = (part for part in re.split(r"[/?&=#]", callback_url) if len(part) >= _SHORTEST_SECRET)
        redact = Redactor([*self._secrets, callback_url, *parts])
        outcome = await self._place(
            _REVERSE_CALL, phone, {"hook_url": callback_url}, wire.parse_reverse_call, timeout=timeout, redact=redact
        )
        return Refused(_unavailable(_REVERSE_CALL, outcome.why)) if isinstance(outcome, Unknown) else outcome

    async def check_call_status(self, call_id: str) -> CallState:
        """Return the state of a call that was placed (brief). Raises ProviderError.

        An unknown status reads as ``initiated`` and is kept in ``provider_status``, redacted.
        """
        state = await self._ask(wire.parse_call_state, _STATUS, {"call_id": call_id})
        if state.provider_status is not None:
            log.warning("plusofon.unknown_call_status", extra={"word": state.provider_status})
        return state

    async def get_account(self) -> Sequence[ProviderAccount]:
        """Return the FlashCall accounts, without the live tokens that come with them (docs). Raises ProviderError."""
        return await self._ask(wire.parse_accounts, _ACCOUNTS)

    async def get_balance(self) -> Decimal:
        """Return the balance in RUB (seen). Raises ProviderError."""
        return await self._ask(wire.parse_balance, _BALANCE)

    async def _place(
        self,
        path: str,
        phone: Phone,
        body: Mapping[str, object],
        parse: Callable[[Answer], Placed],
        *,
        timeout: float | None,
        redact: Redactor | None = None,
    ) -> CallOutcome:
        try:
            body = {"phone": wire.format_phone(phone, self._phone_prefix), **body}
            return parse(await self._send(path, body, redact or self._redact, timeout))
        except ProviderError as error:
            return Refused(error)
        except Unclear as error:
            return Unknown(error.why)

    async def _ask(self, parse: Callable[[Answer], _T], path: str, body: Mapping[str, object] | None = None) -> _T:
        """Ask for something that costs nothing. Raises ProviderRejected, or ProviderUnavailable for no clear answer."""
        try:
            return parse(await self._send(path, body, self._redact))
        except Unclear as error:
            raise _unavailable(path, error.why) from error

    async def _send(
        self, path: str, body: Mapping[str, object] | None, redact: Redactor, timeout: float | None = None
    ) -> Answer:
        """Post a body with the token for calls, or get without one with the token of the cabinet."""
        url = self._urls[path]
        if body is None:
            request = partial(new_request, "GET", url, self._cabinet_headers)
        else:
            request = partial(new_request, "POST", url, self._call_headers, to_json(body))
        return await self._http.send(request, redact=redact, timeout=timeout)


def _unavailable(path: str, why: str) -> ProviderUnavailable:
    log.warning("plusofon.unclear_answer", extra={"path": path, "why": why})
    return ProviderUnavailable(retry_after=DEFAULT_RETRY_AFTER, reason=why)


def _header_value(name: str, value: str) -> str:
    """Return a value that can stand in a header: a line feed from a file of secrets is the usual mistake."""
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"{name} must be printable ASCII without spaces")
    return value
