"""Makes one attempt to deliver an event over HTTP, and returns its outcome. The receiver is not trusted."""

import asyncio
import os
import re
import ssl
import time
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from app.outbound import Connector
from app.verification.webhooks import Event
from app.webhooks.addresses import AddressNotAllowed, is_private, open_public_socket
from app.webhooks.endpoint import WebhookEndpoint

_BUFFER = 4096  # bytes of a response's body that are read from the network, and ignored
_KEPT_OPEN = 15  # seconds that a connection waits for the next event


class Outcome(StrEnum):
    """The outcome of an attempt. ``gone``: the receiver answered 410. ``forbidden``: its address is not public."""

    DELIVERED = "delivered"
    REJECTED = "rejected"
    GONE = "gone"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The outcome of an attempt and, if it failed, the reason without any secret."""

    outcome: Outcome
    error: str = ""


@dataclass(kw_only=True, repr=False, eq=False)
class WebhookSender:
    """Sends events; an async context manager. ``timeout`` (seconds) is for all of name, connection and response.

    No proxy and no password of the environment is used, no redirect is followed, no cookie kept. Unless
    ``allow_private`` no connection is made to an address that is not public; any port is allowed, for the URLs come
    from the operator's settings, and before a byte is sent a public address has shown a certificate of its name.

    A ``proxy`` (``http://[user:password@]host:port``) resolves names itself, so it decides which addresses are reached.
    Only with ``allow_private`` an address that is not public is connected to directly.
    """

    allow_private: bool = False
    timeout: float = 10.0
    resolver: AbstractResolver | None = None
    ssl_context: ssl.SSLContext | None = None
    proxy: str | None = None
    _session: aiohttp.ClientSession = field(init=False)

    async def __aenter__(self) -> Self:
        connector = Connector(
            resolver=self.resolver,
            ssl=self.ssl_context or True,
            socket_factory=None if self.allow_private or self.proxy else open_public_socket,
            limit=0,  # the caller bounds it
            keepalive_timeout=_KEPT_OPEN,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "User-Agent": "Plusofon-Verify-Webhooks",
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
            },
            trust_env=False,
            auto_decompress=False,
            read_bufsize=_BUFFER,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, endpoint: WebhookEndpoint, event: Event) -> Attempt:
        """Make one attempt. Never raises for what the network or the receiver does."""
        body = endpoint.body(event)
        headers = endpoint.headers(event, body, timestamp=int(time.time()))
        target = _verbatim(endpoint.url)
        proxy = None if self.allow_private and is_private(target.host or "") else self.proxy
        try:
            # The session's own time-out ends with the response's head; this one also covers hanging up: leaving the
            # block closes the connection if the body has not arrived whole.
            async with (
                asyncio.timeout(self.timeout),
                self._session.post(target, data=body, headers=headers, allow_redirects=False, proxy=proxy) as response,
            ):
                return _outcome(response.status)
        except TimeoutError:
            return Attempt(Outcome.TIMEOUT, f"no answer within {self.timeout:g} s")
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            return _no_connection(error)
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # No message of the error: it may quote what the receiver sent. ValueError: a URL or a response that cannot
            # be parsed; RuntimeError: some failures of a connection in uvloop.
            return Attempt(Outcome.UNREACHABLE, f"no answer: {type(error).__name__}")


def _verbatim(url: str) -> URL:
    """Return a URL that is sent byte for byte: a receiver that signs its URLs compares bytes (``%2f`` is not ``%2F``).

    Everything after the host counts as the path, the query included: yarl would drop an empty query, and it rewrites
    percent-encodings unless the URL is marked as encoded.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    target = rest.removeprefix(authority)
    path = target if target.startswith("/") else f"/{target}"
    return URL.build(scheme=scheme.lower(), authority=authority, path=path, encoded=True)


def _outcome(status: int) -> Attempt:
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Attempt(Outcome.DELIVERED)
    if status == HTTPStatus.GONE:
        return Attempt(Outcome.GONE, "status 410: the receiver wants no more events")
    is_redirect = HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST
    return Attempt(Outcome.REJECTED, f"status {status}" + (": redirects are not followed" if is_redirect else ""))


def _no_connection(error: aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError) -> Attempt:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Attempt(Outcome.UNREACHABLE, f"no connection: the proxy refused with status {error.status}")
    if isinstance(error.os_error, AddressNotAllowed):
        return Attempt(Outcome.FORBIDDEN, "the host leads to an address that is not public")
    by_proxy = " by the proxy" if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
    cause = error.os_error  # without an errno: of a name that is not found, or of TLS
    reason = os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror or type(cause).__name__
    return Attempt(Outcome.UNREACHABLE, f"no connection{by_proxy}: {reason}")
