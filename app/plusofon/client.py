"""Speaks to Plusofon over HTTP: sends each request once, within one time budget, and says how sure the outcome is."""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Self, TypeVar

import httpx

from app.outbound import (
    DEFAULT_RETRY_AFTER,
    NETWORK_ERRORS,
    Redactor,
    Unclear,
    checked_url,
    failure,
    make_transport,
    read_beginning,
)
from app.plusofon import wire
from app.plusofon.wire import Answer, PhonePrefix
from app.verification.errors import ProviderError, ProviderUnavailable
from app.verification.model import CallOutcome, CallState, Lang, Placed, ProviderAccount, Refused, Unknown
from app.verification.phone import Phone

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_CALL = "/api/v1/flash-call/call"  # brief
_STATUS = "/api/v1/flash-call/status"  # brief
_ACCOUNTS = "/api/v1/flash-call"  # docs
_BALANCE = "/api/v1/payment/balance"  # seen


class PlusofonClient:
    """The ``CallProvider`` that is Plusofon. Close it, or use it as an async context manager.

    Args:
        base_url: ``https://restapi.plusofon.ru`` (docs), or where else the same protocol is spoken.
        user_id: the ``Client`` header (brief).
        access_token: of the FlashCall account; it places calls and tells their state.
        cabinet_token: for the accounts and the balance, where these take another token (seen); else ``access_token``.
        phone_prefix: how numbers begin, ``8`` (brief) or ``7`` (most public clients).
        connect_timeout: seconds for a place in the pool, the address, the connection and TLS, together.
        timeout: seconds for the whole of a request; longer than ``connect_timeout``.
        max_connections: at once; a request beyond waits for a place, no longer than ``connect_timeout``.
        transport: in place of the network, for tests.

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
        # The other way round, the budget could end while connecting, and a call that never happened would look unclear.
        if not 0 < connect_timeout < timeout:
            raise ValueError("connect_timeout must be positive and shorter than timeout")
        self._timeout = timeout
        self._phone_prefix = phone_prefix
        self._call_token = _header_value("access_token", access_token)
        self._cabinet_token = _header_value("cabinet_token", cabinet_token or access_token)
        self._redact = Redactor([self._call_token, self._cabinet_token, user_id])
        self._http = httpx.AsyncClient(
            base_url=checked_url(base_url),
            headers={
                "Client": _header_value("user_id", user_id),
                "Accept": "application/json",
                # A compressed answer could be a thousand times longer than what is read of it.
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "User-Agent": "plusofon-verify",
            },
            # None for reading: that limit is per chunk, which a dripping body never meets. `_send` limits the whole.
            timeout=httpx.Timeout(None, connect=connect_timeout, pool=connect_timeout),
            transport=transport or make_transport(max_connections),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none: each request stands for itself
            follow_redirects=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. No request may be sent after this."""
        await self._http.aclose()

    async def initiate_call(self, phone: Phone, pin: str, lang: Lang, repeat: int) -> CallOutcome:
        """Have ``pin`` spoken to ``phone``, ``repeat`` times (brief: ``POST /api/v1/flash-call/call``).

        Nothing is raised for what the provider or the network does. The request is written at most once, for Plusofon
        is not known to recognise a repeated one and each call is paid.

        Returns:
            ``Placed`` with the provider's ``call_id``; ``Refused`` if the call definitely did not happen, and may be
            tried again; ``Unknown`` if the request was, or may have been, written and no clear answer came.

        """
        try:
            number = wire.format_phone(phone, self._phone_prefix)
            body = {"phone": number, "pin": pin, "lang": lang.value, "repeat": repeat}
            return Placed(wire.parse_placed_call(await self._send("POST", _CALL, self._call_token, body)))
        except ProviderError as error:
            return Refused(error)
        except Unclear as error:
            return Unknown(error.why)

    async def check_call_status(self, call_id: str) -> CallState:
        """Tell the state of a call that was placed (brief: ``POST /api/v1/flash-call/status``).

        A word that is not known reads as ``initiated`` and is kept in ``provider_status``.

        Raises:
            ProviderError: it refused (``ProviderRejected``) or did not answer sensibly (``ProviderUnavailable``).

        """
        state = await self._ask(wire.parse_call_state, "POST", _STATUS, self._call_token, {"call_id": call_id})
        if state.provider_status is not None:
            log.warning("plusofon.unknown_call_status", extra={"word": self._redact(state.provider_status)})
        return state

    async def get_account(self) -> Sequence[ProviderAccount]:
        """Tell the FlashCall accounts, without the live tokens that come with them (docs: ``GET /api/v1/flash-call``).

        Raises:
            ProviderError: it refused (``ProviderRejected``) or did not answer sensibly (``ProviderUnavailable``).

        """
        return await self._ask(wire.parse_accounts, "GET", _ACCOUNTS, self._cabinet_token)

    async def get_balance(self) -> Decimal:
        """Tell the balance in RUB (seen: ``GET /api/v1/payment/balance``).

        Raises:
            ProviderError: it refused (``ProviderRejected``) or did not answer sensibly (``ProviderUnavailable``).

        """
        return await self._ask(wire.parse_balance, "GET", _BALANCE, self._cabinet_token)

    async def _ask(self, parse: Callable[[Answer], _T], method: str, path: str, token: str, body: object = None) -> _T:
        """Ask for something that costs nothing, so an unclear answer is no worse than none."""
        try:
            return parse(await self._send(method, path, token, body))
        except Unclear as error:
            log.warning("plusofon.unclear_answer", extra={"path": path, "why": error.why})
            raise ProviderUnavailable(retry_after=DEFAULT_RETRY_AFTER) from None

    async def _send(self, method: str, path: str, token: str, body: object = None) -> Answer:
        """Send one request and read its answer, all within the time budget.

        Raises:
            ProviderUnavailable: it was never written.
            Unclear: it was, or may have been.

        """
        # `from None` throughout: the errors of aiohttp carry the headers of the request, and with them the token.
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(method, path, token, body)
        except NETWORK_ERRORS as error:
            raise _failure(error) from None
        except Exception:
            log.exception("plusofon.unexpected_error")
            raise Unclear("an unexpected error") from None

    async def _exchange(self, method: str, path: str, token: str, body: object) -> Answer:
        headers = {"Authorization": f"Bearer {token}"}
        async with self._http.stream(method, path, headers=headers, json=body) as response:
            return wire.read_answer(
                response.status_code,
                await read_beginning(response),
                retry_after=response.headers.get("Retry-After"),
                redact=self._redact,
            )


def _failure(error: Exception) -> Exception:
    """Tell what an error of the network means to whoever asked for something."""
    told = failure(error)
    if isinstance(told, Unclear):
        return told
    log.warning("plusofon.not_reached", extra={"error": told.why})
    return ProviderUnavailable(retry_after=DEFAULT_RETRY_AFTER)


def _header_value(name: str, value: str) -> str:
    """Let through what can stand in a header: a line feed from a file of secrets is the usual mistake."""
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"{name} must be printable ASCII without spaces")
    return value
