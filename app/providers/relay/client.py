"""Sends calls to a relay, a URL of the operator's own; each request is signed."""

import logging
from collections.abc import Callable, Mapping
from time import time
from typing import Self, Unpack

import httpx

from app.providers.answer import DEFAULT_RETRY_AFTER, Answer, Redactor
from app.providers.http import HEADERS, HttpOptions, ProviderHttp, Unclear, check_url, new_request
from app.providers.relay import wire
from app.standard_webhooks import parse_secret, sign
from app.verification.channels import Channel
from app.verification.errors import ProviderError, ProviderRejected, ProviderUnavailable
from app.verification.model import CallOutcome, CallState, Placed, Refused, Unknown
from app.verification.ports import CallOrder

log = logging.getLogger(__name__)


class RelaySender:
    """The CallSender of one channel that is a relay. An async context manager.

    Args:
        channel: ``voice`` or ``flash_call``: a relay is sent the code, so there has to be one.
        url: where orders are posted; ``{url}/{call}`` is where their state is asked for. No query.
        secret: ``whsec_…``, which signs each request as Standard Webhooks says.
        now: seconds since 1970.
        trace_context: returns the headers of the present trace (W3C Trace Context).
        http: see ``HttpOptions``.

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
        now: Callable[[], float] = time,
        trace_context: Callable[[], Mapping[str, str]] = dict,
        **http: Unpack[HttpOptions],
    ) -> None:
        if not channel.rules.has_code:
            raise ValueError("a relay takes no reverse calls")
        self._channel = channel
        self._url = check_url(url, "url")
        self._place_url = httpx.URL(self._url)
        self._secret = parse_secret(secret)
        self._now = now
        self._trace_context = trace_context
        # The URL too: such an address often is a secret itself.
        self._redact = Redactor([secret, secret.removeprefix("whsec_"), self._url, self._url.partition("://")[2]])
        self._http = ProviderHttp(not_reached="relay.not_reached", unexpected_error="relay.unexpected_error", **http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def require_ready(self) -> None:
        """Return: nothing is known here."""

    async def place(self, order: CallOrder) -> CallOutcome:
        """Have the relay place a call. Never raises for what the relay or the network does."""
        if order.code is None:  # never so in practice: the channels that have no code are not taken
            return Refused(ProviderRejected("a relay needs a code"))
        call = wire.name_call(order.call_id, self._channel)
        body = wire.write_order(order, self._channel, call)
        try:
            answer = await self._send("POST", self._place_url, call, body, order.timeout)
            return Placed(wire.parse_placed(answer, call=call))
        except ProviderError as error:
            return Refused(error)
        except Unclear as error:
            return Unknown(error.why, call_ref=call)

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call, or none if the relay says that it never got the order. Raises ProviderError."""
        if not wire.CALL_REF.fullmatch(call_ref):
            raise ProviderRejected("not the name of a call at a relay")
        try:
            return wire.parse_state(await self._send("GET", httpx.URL(f"{self._url}/{call_ref}"), call_ref))
        except Unclear as error:
            log.warning("relay.unclear_answer", extra={"why": error.why})
            raise ProviderUnavailable(retry_after=DEFAULT_RETRY_AFTER, reason=error.why) from None

    async def _send(
        self, method: str, url: httpx.URL, message_id: str, body: bytes = b"", timeout: float | None = None
    ) -> Answer:
        def signed_now() -> httpx.Request:
            signed = sign(self._secret, message_id=message_id, timestamp=int(self._now()), body=body)
            headers = {**HEADERS, **signed, **self._trace_context()}
            if body:
                headers["Content-Type"] = "application/json"
            return new_request(method, url, httpx.Headers(headers), body)

        return await self._http.send(signed_now, redact=self._redact, timeout=timeout)
