"""What requests to any provider share: the way to the network, what its failures mean, what of answers may be told."""

import asyncio
import errno
import json
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

import aiohttp
import httpx
import stamina
from aiohttp.connector import Connection
from httpx_aiohttp import AiohttpTransport

DEFAULT_RETRY_AFTER = 30  # seconds, where the provider names none
_LONGEST_RETRY_AFTER = 3600
_LONGEST_MESSAGE = 200
_LONGEST_BODY = 64 * 1024  # bytes; the answers are a few hundred

# Seconds before the one retry: long enough for a process behind the address to be back, and not the same for all.
_PAUSE = 0.05
_PAUSE_JITTER = 0.1
# aiohttp rounds what is beyond 5 s up to the next whole second of its clock.
_EXACT_TIMEOUT = 5
_ROUNDING = 1

# No connection was made: it was refused or not accepted in time, the name has no address, the TLS handshake failed, or
# a proxy made no tunnel.
_NEVER_CONNECTED = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    httpx.ConnectError,
    httpx.ConnectTimeout,
)

# Neither was one tried: for want of a place among the connections, or of a URL. Another try would find the same.
_NEVER_TRIED = (aiohttp.InvalidURL, httpx.PoolTimeout, httpx.UnsupportedProtocol)

# What the network may do to a request. UnicodeError: httpx-aiohttp 0.2 fails on a reason phrase that is not UTF-8.
NETWORK_ERRORS = (httpx.HTTPError, aiohttp.ClientError, OSError, UnicodeError)


class Reason(StrEnum):
    """Why no connection was made, as the log and ``doctor`` tell it apart."""

    DNS = "dns"
    REFUSED = "refused"
    NO_ROUTE = "no_route"
    TIMEOUT = "timeout"
    CERTIFICATE = "certificate"
    TLS = "tls"
    PROXY_UNREACHABLE = "proxy_unreachable"
    PROXY_REFUSED = "proxy_refused"
    OTHER = "other"


class NeverSent(Exception):
    """The request was certainly not written. ``why`` and ``detail`` are short and free of secrets."""

    def __init__(self, why: str, *, worth_a_retry: bool, reason: Reason = Reason.OTHER, detail: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.worth_a_retry = worth_a_retry
        self.reason = reason
        self.detail = detail


class Unclear(Exception):
    """Neither a yes nor a no: what was asked for may have happened. ``why`` is short and free of secrets."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


_REASONS: Mapping[type[Exception], Reason] = {
    aiohttp.ClientHttpProxyError: Reason.PROXY_REFUSED,
    aiohttp.ClientProxyConnectionError: Reason.PROXY_UNREACHABLE,
    aiohttp.ClientConnectorDNSError: Reason.DNS,
    aiohttp.ClientConnectorCertificateError: Reason.CERTIFICATE,
    aiohttp.ClientSSLError: Reason.TLS,
    aiohttp.ConnectionTimeoutError: Reason.TIMEOUT,
    httpx.ConnectTimeout: Reason.TIMEOUT,
}
_REASONS_BY_ERRNO: Mapping[int | None, Reason] = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ENETUNREACH: Reason.NO_ROUTE,
    errno.EHOSTUNREACH: Reason.NO_ROUTE,
}


def failure(error: Exception) -> NeverSent | Unclear:
    """Return what one of ``NETWORK_ERRORS`` means: that nothing was written, or that nobody knows.

    httpx-aiohttp 0.2 turns every ``aiohttp.ClientConnectionError`` into ``httpx.ConnectTimeout``, a connection that was
    reset after the request was written included. So where aiohttp's own error is known, it alone decides.
    """
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    name = type(cause).__name__  # all that is told: a message could name addresses or repeat headers
    if isinstance(cause, _NEVER_CONNECTED + _NEVER_TRIED):
        worth_a_retry = isinstance(cause, _NEVER_CONNECTED)
        return NeverSent(name, worth_a_retry=worth_a_retry, reason=_reason(cause), detail=_detail(cause))
    return Unclear(name)


def _reason(error: Exception) -> Reason:
    by_type = next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), None)
    number = error.os_error.errno if isinstance(error, aiohttp.ClientConnectorError) else None
    return by_type or _REASONS_BY_ERRNO.get(number, Reason.OTHER)


def _detail(error: Exception) -> str:
    """Say more of why no connection was made: in words of OpenSSL or the system, or by the status of a proxy."""
    match error:
        case aiohttp.ClientHttpProxyError():
            return f"status {error.status}"
        case aiohttp.ClientConnectorCertificateError():
            return str(getattr(error.certificate_error, "verify_message", ""))
        case aiohttp.ClientSSLError():
            return str(getattr(error.os_error, "reason", None) or "")
        case aiohttp.ClientProxyConnectionError():
            number = error.os_error.errno
            return os.strerror(number) if number and number > 0 else error.os_error.strerror or ""
        case _:
            return ""


def tries(connect_timeout: float, *, until: float) -> AsyncIterator[stamina.Attempt]:
    """Give one try, and another one where no connection was made and there is time enough for it to fail as clearly.

    ``until`` is when the time is over, by the clock of the running loop.
    """
    rounding = _ROUNDING if connect_timeout > _EXACT_TIMEOUT else 0
    latest = until - (_PAUSE + _PAUSE_JITTER + connect_timeout + rounding)
    now = asyncio.get_running_loop().time

    def is_worth_it(error: Exception) -> bool:
        return isinstance(error, NeverSent) and error.worth_a_retry and now() < latest

    return aiter(
        stamina.retry_context(on=is_worth_it, attempts=2, timeout=None, wait_initial=_PAUSE, wait_jitter=_PAUSE_JITTER)
    )


class Connector(aiohttp.TCPConnector):
    """Makes connections as aiohttp does; one that a proxy broke off on the way was never made, and is told as such.

    aiohttp tells a proxy that hangs up or answers nonsense to a CONNECT like a server that does so to the request.
    """

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list["aiohttp.tracing.Trace"],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp calls it
    ) -> Connection:
        """Make a connection, or take one that is kept."""
        try:
            return await super().connect(req, traces, timeout)
        except (TimeoutError, aiohttp.ClientHttpProxyError, aiohttp.ClientProxyConnectionError, aiohttp.ClientSSLError):
            raise
        except (aiohttp.ClientError, OSError) as error:
            if req.proxy is None or isinstance(error, aiohttp.ClientConnectorCertificateError):
                raise
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            told = getattr(cause, "strerror", None) or "it hung up, or its answer made no sense"
            raise aiohttp.ClientProxyConnectionError(req.connection_key, OSError(None, told)) from None


def trust(context: ssl.SSLContext, ca_file: Path | None) -> ssl.SSLContext:
    """Trust the certificate authorities of a PEM file too. Raises OSError (``ssl.SSLError``) where it has none.

    Python 3.13 is strict about extensions of RFC 5280 that many an authority of a company does not have. With such
    a file certificates are checked as Python 3.12 does.
    """
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def make_transport(
    max_connections: int = 0, *, proxy: str | None = None, ca_file: Path | None = None
) -> AiohttpTransport:
    """Make the transport: verified TLS, no netrc, no cookies; it opens its session with the first request.

    Each request has a connection of its own; without ``max_connections`` there may be any number. aiohttp repeats a
    request whose connection died, but only idempotent methods, so never one to place a call. ``proxy`` is
    ``http://[user:password@]host:port``, and none is taken from the environment; ``ca_file`` is trusted besides the
    usual authorities.
    """
    tls = trust(httpx.create_ssl_context(trust_env=False), ca_file)

    def open_session() -> aiohttp.ClientSession:
        connector = Connector(ssl=tls, limit=max_connections, force_close=True)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), proxy=proxy)

    return AiohttpTransport(verify=tls, trust_env=False, client=open_session)


def checked_url(text: str, name: str = "base_url") -> httpx.URL:
    """Read the address of a provider; ``name`` is what the setting is called.

    Raises:
        ValueError: it is none, or has a user name in it; its value is not repeated.

    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise ValueError(f"{name} is no URL") from None
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo:
        raise ValueError(f"{name} must be http(s)://host, without a user name")
    return url


async def read_beginning(response: httpx.Response) -> bytes:
    """Read a body up to 64 KiB. JSON that is cut off makes no sense, so the cut needs no report of its own."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= _LONGEST_BODY:
            break
    return bytes(body[:_LONGEST_BODY])


def json_object(text: str) -> Mapping[str, object]:
    """Read a JSON object; whatever else it is reads as an empty one. Never raises."""
    try:
        value = json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
    # Besides what is no JSON: arrays nested by the thousand, and numbers beyond what a Decimal holds.
    except (ValueError, RecursionError, InvalidOperation):
        return {}
    return value if isinstance(value, dict) else {}


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON"
    raise ValueError(msg)


def seconds(retry_after: str | None) -> int:
    """Read ``Retry-After``. Its other form, a date, would need a clock and is taken for none."""
    if retry_after is None or not re.fullmatch(r"[0-9]{1,5}", retry_after):
        return DEFAULT_RETRY_AFTER
    wait = int(retry_after)
    return wait if 1 <= wait <= _LONGEST_RETRY_AFTER else DEFAULT_RETRY_AFTER


class Redactor:
    """Makes the provider's words fit to be shown: one line, at most 200 characters, without secrets.

    Gone are the ``secrets`` given here and all that has four digits or more, whatever punctuation stands between
    them. So codes and phone numbers are covered in every spelling, those of this request and any other.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        longest_first = sorted(filter(None, secrets), key=len, reverse=True)
        self._secrets = [re.compile("|".join(map(re.escape, longest_first)))] if longest_first else []
        self._secrets.append(re.compile(r"\d(?:[\W_]*\d){3,}"))

    def __call__(self, text: str) -> str:
        """Return what may be shown of ``text``. Hidden characters go first: they could split a secret in two."""
        shown = printable(text)
        for secret in self._secrets:
            shown = secret.sub("•••", shown)
        return shown.strip()[:_LONGEST_MESSAGE]


def printable(text: str) -> str:
    """Drop control, invisible and surrogate characters; any white space becomes a space."""
    return "".join(" " if char.isspace() else char for char in text if char.isprintable() or char.isspace())
