"""The one way a request to a provider is sent, and how its failure is read: never sent, or unclear.

A request has one time budget, and is never sent again once it may have been written.
"""

import asyncio
import errno
import logging
import os
import random
import ssl
import zlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TypedDict, Unpack, cast

import aiohttp
import httpx

from app.outbound import trust
from app.providers.answer import DEFAULT_RETRY_AFTER, Answer, Redactor, read_answer
from app.providers.connections import KeptConnections, find_header
from app.verification.errors import ProviderUnavailable

log = logging.getLogger(__name__)

_LONGEST_BODY = 64 * 1024  # bytes; the answers are a few hundred
_SHORTEST_TIMEOUT = 0.001  # seconds; zero would mean no limit

# Seconds before the one retry: long enough for a process behind the address to be back, and not the same for all.
_SHORTEST_PAUSE = 0.05
_LONGEST_PAUSE = 0.15
_EXACT_TIMEOUT = 5  # seconds; aiohttp rounds a longer one up to the next whole second of its clock

HEADERS: Mapping[str, str] = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": "plusofon-verify",
}
"""Of each request to a provider."""

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
_NETWORK_ERRORS = (httpx.HTTPError, aiohttp.ClientError, OSError)


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

    connect_timeout: float  # seconds for a place among the connections, the address, the connection and TLS, together
    timeout: float  # seconds for the whole of a request, its second try included; longer than ``connect_timeout``
    max_connections: int  # at once; a request beyond waits for a place, no longer than ``connect_timeout``
    transport: httpx.AsyncBaseTransport  # see ``make_transport``


class ProviderHttp:
    """Sends requests to one provider. Raises ValueError for time-outs that cannot work.

    ``not_reached`` names the log event for each try that made no connection, ``unexpected_error`` that for a bug in a
    library.
    """

    def __init__(self, *, not_reached: str, unexpected_error: str, **options: Unpack[HttpOptions]) -> None:
        connect_timeout, timeout = options["connect_timeout"], options["timeout"]
        # The other way round, the budget could end while connecting, and a call that never happened would look unclear.
        if not 0 < connect_timeout < timeout:
            raise ValueError("connect_timeout must be positive and shorter than timeout")
        self._not_reached = not_reached
        self._unexpected_error = unexpected_error
        self._connect_timeout = connect_timeout
        self._retry_seconds = _LONGEST_PAUSE + connect_timeout + (connect_timeout > _EXACT_TIMEOUT)
        self._timeout = timeout
        # Counted here: aiohttp reports a lack of places like a connection that takes too long.
        self._places = asyncio.Semaphore(options["max_connections"])
        # Without httpx.AsyncClient: no redirects, cookies, or proxies and passwords of the environment are wanted.
        self._transport = options["transport"]

    async def aclose(self) -> None:
        """Close the connections. No request may be sent after this."""
        await self._transport.aclose()

    async def send(
        self, make_request: Callable[[], httpx.Request], *, redact: Redactor, timeout: float | None = None
    ) -> Answer:
        """Send a request and read its answer within the time budget, or ``timeout`` seconds if that is less.

        Half of the budget is for connecting at most. A connection that was never made is tried once more, with another
        request of ``make_request``, if the time left has room for a whole ``connect_timeout``.

        Raises:
            ProviderUnavailable: it was never written; the cause is a ``NeverSent``.
            Unclear: it was written, or may have been.

        """
        seconds = self._timeout if timeout is None else min(self._timeout, timeout)
        now = asyncio.get_running_loop().time
        deadline, connect_by = now() + seconds, now() + min(self._connect_timeout, seconds / 2)
        try:
            async with asyncio.timeout_at(deadline):
                await self._acquire_place(until=connect_by)
                try:
                    try:
                        return await self._exchange(make_request(), connect_by - now(), redact)
                    except NeverSent as error:
                        if not error.is_retryable or now() > deadline - self._retry_seconds:
                            raise
                    await asyncio.sleep(random.uniform(_SHORTEST_PAUSE, _LONGEST_PAUSE))  # noqa: S311 - no secret
                    return await self._exchange(make_request(), self._connect_timeout, redact)
                finally:
                    self._places.release()
        except NeverSent as error:
            raise ProviderUnavailable(retry_after=DEFAULT_RETRY_AFTER, reason=error.reason) from error
        except TimeoutError:
            raise Unclear("TimeoutError") from None

    async def _acquire_place(self, *, until: float) -> None:
        if not self._places.locked():
            await self._places.acquire()  # at once
            return
        try:
            async with asyncio.timeout_at(until):
                await self._places.acquire()
        except TimeoutError:
            raise self._failure(httpx.PoolTimeout("")) from None

    async def _exchange(self, request: httpx.Request, connect: float, redact: Redactor) -> Answer:
        """Send a request, and read its answer. Raises NeverSent or Unclear."""
        # For a new connection. None for reading: that limit is per chunk, which a dripping body never meets. The budget
        # limits the whole.
        request.extensions["timeout"] = {"connect": max(connect, _SHORTEST_TIMEOUT)}
        try:
            response = await self._transport.handle_async_request(request)
            body = await _read_body(response)
        except _NETWORK_ERRORS as error:
            raise self._failure(error) from None  # the errors of aiohttp carry the headers of the request
        except Exception:
            log.exception(self._unexpected_error)
            raise Unclear("an unexpected error") from None
        retry_after = find_header(response.headers.raw, b"retry-after")
        return read_answer(response.status_code, body, retry_after=retry_after, redact=redact)

    def _failure(self, error: Exception) -> NeverSent | Unclear:
        """Return what one of ``_NETWORK_ERRORS`` means, and log a try that made no connection."""
        why = type(error).__name__  # no message: it could name addresses or repeat headers
        if not isinstance(error, _NEVER_CONNECTED + _NEVER_TRIED):
            return Unclear(why)
        reason, detail = _explain(error)
        log.warning(self._not_reached, extra={"reason": reason, "error": why, "detail": detail or None})
        return NeverSent(why, is_retryable=isinstance(error, _NEVER_CONNECTED), reason=reason, detail=detail)


def new_request(method: str, url: httpx.URL, headers: httpx.Headers, content: bytes = b"") -> httpx.Request:
    """Make a request. ``KeptConnections`` adds the headers ``Host`` and ``Content-Length``.

    Given a stream, httpx computes no headers, and given ``Headers``, it copies them as they are: with other arguments
    it takes five times as long.
    """
    request = httpx.Request(method, url, headers=headers, stream=httpx.ByteStream(content))
    request.read()
    return request


async def _read_body(response: httpx.Response) -> bytes:
    """Read a body up to 64 KiB, both as sent and unpacked; JSON that is cut off is not JSON, which is enough.

    A compressed body is read although none is asked for. httpx would unpack it to a thousand times its size.
    """
    raw, stream = bytearray(), cast("httpx.AsyncByteStream", response.stream)
    if isinstance(stream, httpx.ByteStream):  # it is here already, as that of ``KeptConnections`` is
        raw += b"".join(stream)
    else:
        try:
            async for chunk in stream:
                raw += chunk
                if len(raw) >= _LONGEST_BODY:
                    break
        finally:
            await stream.aclose()
    match find_header(response.headers.raw, b"content-encoding").lower():
        case "" | "identity":
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


def make_transport(*, proxy: str | None = None, ca_file: Path | None = None) -> httpx.AsyncBaseTransport:
    """Make a transport with verified TLS; nothing is taken from the environment.

    ``proxy`` is ``http://[user:password@]host:port``; ``ca_file`` is trusted besides the usual authorities.
    """
    return KeptConnections(tls=_verified_tls(ca_file), proxy=proxy)


@cache
def _verified_tls(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that all transports share: to load the usual authorities takes 20 ms."""
    return trust(httpx.create_ssl_context(trust_env=False), ca_file)


def check_url(text: str, name: str) -> str:
    """Return the URL of a provider without a slash at its end. Raise ValueError, with ``name`` and not the value."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise ValueError(f"{name} is not a URL") from None
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.fragment or "?" in text:
        raise ValueError(f"{name} must be http(s)://host, without a user name, a query or a fragment")
    return str(url).rstrip("/")
