"""Sends calls to a relay, a URL of the operator's own: each request signed, written once, within one time budget."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from time import time
from typing import Self

import httpx

from app.outbound import (
    DEFAULT_RETRY_AFTER,
    NETWORK_ERRORS,
    NeverSent,
    Redactor,
    Unclear,
    checked_url,
    failure,
    make_transport,
    read_beginning,
    tries,
)
from app.providers.relay import wire
from app.providers.relay.wire import Answer
from app.standard_webhooks import parse_secret, sign
from app.verification.channels import Channel
from app.verification.errors import ProviderError, ProviderRejected, ProviderUnavailable
from app.verification.model import CallOutcome, CallState, Placed, Refused, Unknown
from app.verification.ports import CallOrder

log = logging.getLogger(__name__)


class RelaySender:
    """The CallSender of one channel that is a relay. Close it, or use it as an async context manager.

    Args:
        channel: ``voice`` or ``flash_call``: a relay is told the code, so there has to be one.
        url: where orders are posted; ``{url}/{call}`` is where their state is asked for. No query.
        secret: ``whsec_…``, which signs each request as Standard Webhooks says.
        connect_timeout: seconds for a place in the pool, the address, the connection and TLS, together.
        timeout: seconds for the whole of a request, its second try included; longer than ``connect_timeout``.
        max_connections: at once; a request beyond waits for a place, no longer than ``connect_timeout``.
        transport: how requests are sent, in place of ``max_connections``; directly if left out.
        now: seconds since 1970.
        trace_context: makes the headers that tie a request to the trace that it belongs to (W3C Trace Context).

    Raises:
        ValueError: an argument cannot work; its value is not repeated.

    """

    provider = "relay"
    supports_status = True

    def __init__(
        self,
        channel: Channel,
        *,
        url: str,
        secret: str,
        connect_timeout: float = 3.0,
        timeout: float = 10.0,
        max_connections: int = 50,
        transport: httpx.AsyncBaseTransport | None = None,
        now: Callable[[], float] = time,
        trace_context: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        if not channel.rules.has_code:
            raise ValueError("a relay takes no reverse calls")
        # The other way round, the budget could end while connecting, and a call that never happened would look unclear.
        if not 0 < connect_timeout < timeout:
            raise ValueError("connect_timeout must be positive and shorter than timeout")
        self._channel = channel
        self._url = _endpoint(url)
        self._secret = parse_secret(secret)
        self._now = now
        self._trace_context = trace_context
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        # The URL too: such an address often is a secret itself.
        self._redact = Redactor([secret, secret.removeprefix("whsec_"), self._url, self._url.partition("://")[2]])
        self._http = httpx.AsyncClient(
            headers={
                "Accept": "application/json",
                # A compressed answer could be a thousand times longer than what is read of it.
                "Accept-Encoding": "identity",
                # On a kept connection, a second answer to an earlier order would be taken for that to the next one.
                "Connection": "close",
                "User-Agent": "plusofon-verify",
            },
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

    def require_ready(self) -> None:
        """Return: nothing is known here."""

    async def place(self, order: CallOrder) -> CallOutcome:
        """Have the relay place a call. The request is written at most once; nothing is raised for what becomes of it.

        ``Unknown`` has the name that the relay was told, by which the call can be looked up.
        """
        if order.code is None:  # never so in practice: the channels that have no code are not taken
            return Refused(ProviderRejected("a relay needs a code"))
        call = wire.name_call(order.name, self._channel)
        try:
            answer = await self._send(
                "POST", self._url, call, wire.write_order(order, self._channel, call), order.within
            )
            return Placed(wire.parse_placed(answer, call=call))
        except ProviderError as error:
            return Refused(error)
        except Unclear as error:
            return Unknown(error.why, call_ref=call)

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call, or none if the relay says that it never was told of it.

        Raises:
            ProviderUnavailable: it did not answer, or not sensibly.
            ProviderRejected: ``call_ref`` is no name of a call here.

        """
        if not wire.CALL_REF.fullmatch(call_ref):
            raise ProviderRejected("no name of a call at a relay")
        try:
            return wire.parse_state(await self._send("GET", f"{self._url}/{call_ref}", call_ref, b""))
        except Unclear as error:
            log.warning("relay.unclear_answer", extra={"why": error.why})
            raise ProviderUnavailable(retry_after=DEFAULT_RETRY_AFTER) from None

    async def _send(self, method: str, url: str, message_id: str, body: bytes, within: float | None = None) -> Answer:
        """Send one request and read its answer, all within the time budget, or ``within`` if that is less.

        Half of that is for the connection at most: if the budget ended first, a call that never happened would look
        unclear.

        Raises:
            ProviderUnavailable: it was never written.
            Unclear: it was, or may have been.

        """
        seconds = self._timeout if within is None else min(self._timeout, within)
        connect = min(self._connect_timeout, seconds / 2)
        # None for reading: that limit is per chunk, which a dripping body never meets. The budget limits the whole.
        timeout = httpx.Timeout(None, connect=connect, pool=connect)

        def signed_now() -> httpx.Request:
            headers = sign(self._secret, message_id=message_id, timestamp=int(self._now()), body=body)
            headers.update(self._trace_context())
            if body:
                headers["Content-Type"] = "application/json"
            return self._http.build_request(method, url, headers=headers, content=body, timeout=timeout)

        try:
            async with asyncio.timeout(seconds) as budget:
                return await self._connect_and_exchange(signed_now, budget)
        except NeverSent as error:
            log.warning(
                "relay.not_reached", extra={"reason": error.reason, "error": error.why, "detail": error.detail or None}
            )
            raise ProviderUnavailable(retry_after=DEFAULT_RETRY_AFTER) from None
        except TimeoutError:
            raise Unclear("TimeoutError") from None

    async def _connect_and_exchange(self, make: Callable[[], httpx.Request], budget: asyncio.Timeout) -> Answer:
        """Try a connection that was never made once more, if that can fail as clearly again before the time is over."""
        async for attempt in tries(self._connect_timeout, until=budget.when() or 0):
            with attempt:
                return await self._exchange(make())
        raise AssertionError("unreachable: the last attempt raises")

    async def _exchange(self, request: httpx.Request) -> Answer:
        # `from None` throughout: the errors of aiohttp carry the request.
        try:
            response = await self._http.send(request, stream=True)
            try:
                body = await _plain_beginning(response)
            finally:
                await response.aclose()
        except NETWORK_ERRORS as error:
            raise failure(error) from None
        except Exception:
            log.exception("relay.unexpected_error")
            raise Unclear("an unexpected error") from None
        return wire.read_answer(
            response.status_code, body, retry_after=response.headers.get("Retry-After"), redact=self._redact
        )


async def _plain_beginning(response: httpx.Response) -> bytes:
    """Read a body, unless it is compressed against what was asked for: that may unpack to gigabytes."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return b""
    return await read_beginning(response)


def _endpoint(text: str) -> str:
    url = checked_url(text, "url")
    if url.query or url.fragment or "?" in text:
        raise ValueError("url must have no query and no fragment")
    return str(url).rstrip("/")
