"""Speaks to Plusofon over HTTP: asks for calls and for what is known of them, and says how sure the outcome is."""

import logging
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Self, TypeVar

import httpx

from app.outbound import DEFAULT_RETRY_AFTER, Redactor, Unclear
from app.providers.plusofon import wire
from app.providers.plusofon.exchange import Exchange, header_value, secrets_of_url
from app.providers.plusofon.wire import Answer, PhonePrefix
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


class PlusofonClient:
    """Plusofon, as its channels and the balance ask it. Close it, or use it as an async context manager.

    Args:
        base_url: ``https://restapi.plusofon.ru`` (docs), or where else the same protocol is spoken.
        user_id: the ``Client`` header (brief).
        access_token: of the FlashCall account; it places calls and tells their state.
        cabinet_token: for the accounts and the balance, where these take another token (seen); else ``access_token``.
        phone_prefix: how numbers begin, ``8`` (brief) or ``7`` (most public clients).
        connect_timeout: seconds for a place among the connections, the address, the connection and TLS, together.
        timeout: seconds for the whole of a request; longer than ``connect_timeout``. A connection that was never made
            is tried for once more, if a whole ``connect_timeout`` is left.
        max_connections: at once; a request beyond waits for a place, no longer than ``connect_timeout``.
        transport: how requests are sent; directly if left out.

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
        connect_timeout: float = 3.0,
        timeout: float = 10.0,
        max_connections: int = 100,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._phone_prefix = phone_prefix
        self._call_token = header_value("access_token", access_token)
        self._cabinet_token = header_value("cabinet_token", cabinet_token or access_token)
        self._secrets = (self._call_token, self._cabinet_token, user_id)
        self._redact = Redactor(self._secrets)
        self._exchange = Exchange(
            base_url=base_url,
            user_id=user_id,
            connect_timeout=connect_timeout,
            timeout=timeout,
            max_connections=max_connections,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. No request may be sent after this."""
        await self._exchange.aclose()

    async def initiate_call(
        self, phone: Phone, pin: str, lang: Lang, repeat: int, *, within: float | None = None
    ) -> CallOutcome:
        """Have ``pin`` spoken to ``phone``, ``repeat`` times (brief: ``POST /api/v1/flash-call/call``).

        Nothing is raised for what the provider or the network does. The request is written at most once, for Plusofon
        is not known to recognise a repeated one and each call is paid. ``within`` is how many seconds are left for it,
        where that is less than ``timeout``.

        Returns:
            ``Placed`` with the provider's ``call_id``; ``Refused`` if the call definitely did not happen, and may be
            tried again; ``Unknown`` if the request was, or may have been, written and no clear answer came.

        """
        try:
            body = {"phone": self._spelled(phone), "pin": pin, "lang": lang.value, "repeat": repeat}
            return Placed(wire.parse_placed_call(await self._place(_CALL, body, within)))
        except ProviderError as error:
            return _refused(error)
        except Unclear as error:
            return Unknown(error.why)

    async def send_flash_call(self, phone: Phone, pin: str | None, *, within: float | None = None) -> CallOutcome:
        """Have ``phone`` called from a number that ends in ``pin`` (docs, seen: ``POST /api/v1/flash-call/send``).

        Without a ``pin`` the provider chooses one. Raises nothing and repeats nothing, as ``initiate_call``.

        Returns:
            ``Placed`` with the provider's ``key``, the ``code`` if one came back, and the phone's ``operator`` if told;
            ``Refused`` or ``Unknown`` as for a spoken code. ``Unknown`` is also a call whose code nobody knows here.

        """
        try:
            wire.require_flash_pin(pin)
            body = {"phone": self._spelled(phone)} | ({"pin": pin} if pin is not None else {})
            placed = wire.parse_flash_call(await self._place(_FLASH_CALL, body, within))
        except ProviderError as error:
            return _refused(error)
        except Unclear as error:
            return Unknown(error.why)
        return placed if placed.code or pin is not None else Unknown("a call whose code was not told")

    async def call_to_auth(self, phone: Phone, hook_url: str, *, within: float | None = None) -> CallOutcome:
        """Ask for a number that ``phone`` is to dial (docs, seen: ``POST /api/v1/flash-call/call-to-auth``).

        Plusofon posts to ``hook_url`` when that call came in. The URL may hold a secret: it is not logged or repeated.

        Nobody is called by this, and a person who was told no number dials none. So there is no ``Unknown``: an unclear
        answer is a definite no call, and as good as a provider that was not reached. Whether an unused number costs
        anything is open; the request is written at most once all the same.

        Returns:
            ``Placed`` with the provider's ``key`` and the number to ``dial``, or ``Refused``.

        """
        redact = Redactor([*self._secrets, *secrets_of_url(hook_url)])
        try:
            body = {"phone": self._spelled(phone), "hook_url": hook_url}
            answer = await self._exchange.send(
                "POST", _REVERSE_CALL, self._call_token, body, redact=redact, within=within
            )
            return wire.parse_reverse_call(answer)
        except ProviderError as error:
            return _refused(error)
        except Unclear as error:
            return Refused(_unavailable(_REVERSE_CALL, error))

    async def check_call_status(self, call_id: str) -> CallState:
        """Return the state of a call that was placed (brief: ``POST /api/v1/flash-call/status``).

        A word that is not known reads as ``initiated`` and is kept in ``provider_status``, without what may be a code.

        Raises:
            ProviderError: it refused (``ProviderRejected``) or did not answer sensibly (``ProviderUnavailable``).

        """
        parse = partial(wire.parse_call_state, redact=self._redact)
        state = await self._ask(parse, "POST", _STATUS, self._call_token, {"call_id": call_id})
        if state.provider_status is not None:
            log.warning("plusofon.unknown_call_status", extra={"word": state.provider_status})
        return state

    async def get_account(self) -> Sequence[ProviderAccount]:
        """Return the FlashCall accounts, without the live tokens that come with them.

        Source: the vendor's documentation of ``GET /api/v1/flash-call``.

        Raises:
            ProviderError: it refused (``ProviderRejected``) or did not answer sensibly (``ProviderUnavailable``).

        """
        return await self._ask(wire.parse_accounts, "GET", _ACCOUNTS, self._cabinet_token)

    async def get_balance(self) -> Decimal:
        """Return the balance in RUB (seen: ``GET /api/v1/payment/balance``).

        Raises:
            ProviderError: it refused (``ProviderRejected``) or did not answer sensibly (``ProviderUnavailable``).

        """
        return await self._ask(wire.parse_balance, "GET", _BALANCE, self._cabinet_token)

    async def _ask(self, parse: Callable[[Answer], _T], method: str, path: str, token: str, body: object = None) -> _T:
        """Ask for something that costs nothing, so an unclear answer is no worse than none."""
        try:
            return parse(await self._send(method, path, token, body))
        except Unclear as error:
            raise _unavailable(path, error) from error

    async def _send(self, method: str, path: str, token: str, body: object = None) -> Answer:
        return await self._exchange.send(method, path, token, body, redact=self._redact)

    async def _place(self, path: str, body: object, within: float | None) -> Answer:
        return await self._exchange.send("POST", path, self._call_token, body, redact=self._redact, within=within)

    def _spelled(self, phone: Phone) -> str:
        return wire.format_phone(phone, self._phone_prefix)


def _refused(error: ProviderError) -> Refused:
    if isinstance(error, ProviderRejected):
        log.warning("plusofon.call_rejected", extra={"detail": error.message})  # redacted already
    return Refused(error)


def _unavailable(path: str, error: Unclear) -> ProviderUnavailable:
    log.warning("plusofon.unclear_answer", extra={"path": path, "why": error.why})
    return ProviderUnavailable(retry_after=DEFAULT_RETRY_AFTER)
