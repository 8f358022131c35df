"""The one way a request to a provider is sent, and how its failure is read: never sent, or unclear.

A request has one time budget, and is never sent again once it may have been written.
"""

import asyncio
import errno
import logging
import os
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import TypedDict, Unpack, cast

import aiohttp
import httpx
import stamina
from httpx_aiohttp import AiohttpTransport

from app.outbound import Connector, trust
from app.providers.answer import DEFAULT_RETRY_AFTER, Answer, Redactor, read_answer
from app.verification.errors import ProviderUnavailable

log = logging.getLogger(__name__)

_LONGEST_BODY = 64 * 1024  # bytes; the answers are a few hundred
_SHORTEST_TIMEOUT = 0.001  # seconds; zero would mean no limit

# Seconds before the one retry: long enough for a process behind the address to be back, and not the same for all.
_PAUSE = 0.05
_PAUSE_JITTER = 0.1
# aiohttp rounds a time-out of more than 5 s up to the next whole second of its clock.
_EXACT_TIMEOUT = 5
_ROUNDING = 1

_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "plusofon-verify",
}

# No connection was made: it was refused or not accepted in time, the name has no address, the TLS handshake failed, or
# a proxy made no tunnel.
_NEVER_CONNECTED = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    httpx.ConnectError,
    httpx.ConnectTimeout,
)
# No connection was tried, for want of a place or of a URL. Another try would find the same.
_NEVER_TRIED = (aiohttp.InvalidURL, httpx.PoolTimeout, httpx.UnsupportedProtocol)
# UnicodeError: httpx-aiohttp 0.2 fails on a reason phrase that is not UTF-8.
_NETWORK_ERRORS = (httpx.HTTPError, aiohttp.ClientError, OSError, UnicodeError)


class Reason(StrEnum):
    """Why no connection was made; shown by the log and by ``doctor``."""

    DNS = "dns"
    REFUSED = "refused"
    NO_ROUTE = "no_route"
    TIMEOUT = "timeout"
    CERTIFICATE = "certificate"
    TLS = "tls"
    PROXY_UNREACHABLE = "proxy_unreachable"
    PROXY_REFUSED = "proxy_refused"
    OTHER = "other"


_REASONS_BY_ERRNO: Mapping[int | None, Reason] = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ENETUNREACH: Reason.NO_ROUTE,
    errno.EHOSTUNREACH: Reason.NO_ROUTE,
}


class NeverSent(Exception):
    """The request was certainly not written. ``why`` and ``detail`` are short and free of secrets."""

    def __init__(self, why: str, *, is_retryable: bool, reason: Reason, detail: str) -> None:
        super().__init__(why)
        self.why = why
        self.is_retryable = is_retryable
        self.reason = reason
        self.detail = detail


class Unclear(Exception):
    """Neither a yes nor a no: the request may have been carried out. ``why`` is short and free of secrets."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class HttpOptions(TypedDict):
    """What a provider's client is given for its ``ProviderHttp``."""

    connect_timeout: float
    """Seconds for a place among the connections, the address, the connection and TLS, together."""
    timeout: float
    """Seconds for the whole of a request, its second try included; longer than ``connect_timeout``."""
    max_connections: int
    """At once; a request beyond waits for a place, no longer than ``connect_timeout``."""
    transport: httpx.AsyncBaseTransport
    """Sends requests; see ``make_transport``."""


class ProviderHttp:
    """Sends requests to one provider.

    Each request has a connection of its own. On a kept one, an unsolicited answer (a second one to an earlier request)
    would be taken for the next request's: aiohttp 3.14 looks for such data when it puts a connection back, not when it
    takes it out. And a kept connection that the server closes just then would leave a call unknown. The price is a
    handshake for each call.

    Args:
        not_reached: name of the log event for each try that made no connection.
        unexpected_error: name of the log event for a bug in a library.
        options: see ``HttpOptions``.

    Raises:
        ValueError: the time-outs cannot work.

    """

    def __init__(self, *, not_reached: str, unexpected_error: str, **options: Unpack[HttpOptions]) -> None:
        connect_timeout, timeout = options["connect_timeout"], options["timeout"]
        # The other way round, the budget could end while connecting, and a call that never happened would look unclear.
        if not 0 < connect_timeout < timeout:
            raise ValueError("connect_timeout must be positive and shorter than timeout")
        self._not_reached = not_reached
        self._unexpected_error = unexpected_error
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        # Counted here: aiohttp reports a lack of places like a connection that takes too long.
        self._places = asyncio.Semaphore(options["max_connections"])
        # Without httpx.AsyncClient: no redirects, cookies, or proxies and passwords of the environment are wanted.
        self._transport = options["transport"]

    async def aclose(self) -> None:
        """Close the connections. No request may be sent after this."""
        await self._transport.aclose()

    async def send(
        self, make_request: Callable[[], httpx.Request], *, redact: Redactor, within: float | None = None
    ) -> Answer:
        """Send a request and read its answer within the time budget, or ``within`` seconds if that is less.

        Half of the budget is for connecting at most. A connection that was never made is tried once more, with another
        request of ``make_request``, if the time left has room for a whole ``connect_timeout``.

        Raises:
            ProviderUnavailable: it was never written; the cause is a ``NeverSent``.
            Unclear: it was written, or may have been.

        """
        seconds = self._timeout if within is None else min(self._timeout, within)
        now = asyncio.get_running_loop().time
        deadline, connect_by = now() + seconds, now() + min(self._connect_timeout, seconds / 2)
        rounding = _ROUNDING if self._connect_timeout > _EXACT_TIMEOUT else 0
        retry_by = deadline - (_PAUSE + _PAUSE_JITTER + self._connect_timeout + rounding)

        def may_retry(error: Exception) -> bool:
            return isinstance(error, NeverSent) and error.is_retryable and now() < retry_by

        tries = stamina.retry_context(
            on=may_retry, attempts=2, timeout=None, wait_initial=_PAUSE, wait_jitter=_PAUSE_JITTER
        )
        try:
            async with asyncio.timeout_at(deadline), self._place(until=connect_by):
                async for attempt in tries:
                    with attempt:
                        connect = connect_by - now() if attempt.num == 1 else self._connect_timeout
                        return await self._exchange(make_request(), connect, redact)
        except NeverSent as error:
            raise ProviderUnavailable(retry_after=DEFAULT_RETRY_AFTER) from error
        except TimeoutError:
            raise Unclear("TimeoutError") from None
        raise AssertionError("unreachable: the last attempt returns or raises")

    @asynccontextmanager
    async def _place(self, *, until: float) -> AsyncIterator[None]:
        """Hold one of the places for connections."""
        try:
            async with asyncio.timeout_at(until):
                await self._places.acquire()
        except TimeoutError:
            raise self._failure(httpx.PoolTimeout("")) from None
        try:
            yield
        finally:
            self._places.release()

    async def _exchange(self, request: httpx.Request, connect: float, redact: Redactor) -> Answer:
        """Send a request over a new connection, and read its answer. Raises NeverSent or Unclear."""
        request.headers.update(_HEADERS)
        # Both are for the address, the connection and TLS, together; ``pool`` is what httpx-aiohttp 0.2 goes by. None
        # for reading: that limit is per chunk, which a dripping body never meets. The budget limits the whole.
        limit = max(connect, _SHORTEST_TIMEOUT)
        request.extensions["timeout"] = {"connect": limit, "pool": limit}
        try:
            response = await self._transport.handle_async_request(request)
            try:
                body = await _read_body(response)
            finally:
                await response.aclose()
        except _NETWORK_ERRORS as error:
            raise self._failure(error) from None  # the errors of aiohttp carry the headers of the request
        except Exception:
            log.exception(self._unexpected_error)
            raise Unclear("an unexpected error") from None
        return read_answer(response.status_code, body, retry_after=response.headers.get("Retry-After"), redact=redact)

    def _failure(self, error: Exception) -> NeverSent | Unclear:
        """Return what one of ``_NETWORK_ERRORS`` means, and log a try that made no connection.

        Where aiohttp's own error is known, it alone decides: httpx-aiohttp 0.2 turns every ``ClientConnectionError``
        into ``httpx.ConnectTimeout``, even that of a connection that was reset after the request was written.
        """
        cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
        why = type(cause).__name__  # no message: it could name addresses or repeat headers
        if not isinstance(cause, _NEVER_CONNECTED + _NEVER_TRIED):
            return Unclear(why)
        reason, detail = _explain(cause)
        log.warning(self._not_reached, extra={"reason": reason, "error": why, "detail": detail or None})
        return NeverSent(why, is_retryable=isinstance(cause, _NEVER_CONNECTED), reason=reason, detail=detail)


async def _read_body(response: httpx.Response) -> bytes:
    """Read a body up to 64 KiB, both as sent and unpacked; JSON that is cut off is not JSON, which is enough.

    A compressed body is read although none is asked for. httpx would unpack it to a thousand times its size.
    """
    raw = bytearray()
    async for chunk in cast("httpx.AsyncByteStream", response.stream):
        raw += chunk
        if len(raw) >= _LONGEST_BODY:
            break
    match response.headers.get("Content-Encoding", "identity").lower():
        case "identity":
            return bytes(raw[:_LONGEST_BODY])
        case "gzip" | "deflate":
            try:
                return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(raw, _LONGEST_BODY)  # 32: of either format
            except zlib.error:
                return b""
        case _:
            return b""


def _explain(error: Exception) -> tuple[Reason, str]:  # noqa: PLR0911 - a table, written as a match
    """Return why no connection was made, and more on it from OpenSSL, the system or the proxy, if there is more."""
    match error:
        case aiohttp.ClientHttpProxyError():
            return Reason.PROXY_REFUSED, f"status {error.status}"
        case aiohttp.ClientProxyConnectionError():
            number = error.os_error.errno
            detail = os.strerror(number) if number and number > 0 else error.os_error.strerror
            return Reason.PROXY_UNREACHABLE, detail or ""
        case aiohttp.ClientConnectorDNSError():
            return Reason.DNS, ""
        case aiohttp.ClientConnectorCertificateError():
            return Reason.CERTIFICATE, str(getattr(error.certificate_error, "verify_message", ""))
        case aiohttp.ClientSSLError():
            return Reason.TLS, str(getattr(error.os_error, "reason", None) or "")
        case aiohttp.ConnectionTimeoutError() | httpx.ConnectTimeout():
            return Reason.TIMEOUT, ""
        case aiohttp.ClientConnectorError():
            return _REASONS_BY_ERRNO.get(error.os_error.errno, Reason.OTHER), ""
        case _:
            return Reason.OTHER, ""


def make_transport(*, proxy: str | None = None, ca_file: Path | None = None) -> AiohttpTransport:
    """Make a transport with verified TLS, no netrc and no cookies; it opens its session with the first request.

    aiohttp repeats a request whose connection died, but only idempotent methods, so never one that places a call.
    ``proxy`` is ``http://[user:password@]host:port``, and none is taken from the environment; ``ca_file`` is trusted
    besides the usual authorities.
    """
    tls = trust(httpx.create_ssl_context(trust_env=False), ca_file)

    def open_session() -> aiohttp.ClientSession:
        connector = Connector(ssl=tls, limit=0, force_close=True)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), proxy=proxy)

    return AiohttpTransport(verify=tls, trust_env=False, client=open_session)


def check_url(text: str, name: str) -> str:
    """Return the URL of a provider without a slash at its end; ``name`` is what the argument is called.

    Raises:
        ValueError: it is not a URL, or has a user name, a query or a fragment; its value is not repeated.

    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise ValueError(f"{name} is not a URL") from None
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.fragment or "?" in text:
        raise ValueError(f"{name} must be http(s)://host, without a user name, a query or a fragment")
    return str(url).rstrip("/")
