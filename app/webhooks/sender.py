"""Makes one attempt to deliver an event, over HTTP, and says what came of it. The receiver is not trusted."""

import asyncio
import os
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from app.outbound import Connector
from app.verification.webhooks import Event
from app.webhooks.addresses import AddressNotAllowed, is_private, open_public_socket
from app.webhooks.endpoint import WebhookEndpoint

_BUFFER = 4096  # bytes of an answer's body that are taken from the network; none of them is looked at
_KEPT_OPEN = 15  # seconds that a connection waits for the next event
_USER_AGENT = "Plusofon-Verify-Webhooks"


class Outcome(StrEnum):
    """What came of an attempt. ``gone``: the receiver said 410. ``forbidden``: its address is not public."""

    DELIVERED = "delivered"
    REJECTED = "rejected"
    GONE = "gone"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt: what came of it, and where it failed, why; a sentence without a secret."""

    outcome: Outcome
    error: str = ""


class WebhookSender:
    """Sends events, as an async context manager. ``timeout`` (seconds) is for everything: name, connection, answer.

    No proxy and no password of the environment is used, no redirect is followed, no cookie kept. Unless
    ``allow_private`` no connection is made to an address that is not public; any port will do, for the URLs are those
    of the operator's own settings, and before a byte is sent a public address has shown a certificate of its name.

    With a ``proxy`` (``http://[user:password@]host:port``) it is the proxy that looks names up, so it decides which
    addresses are reached. Only with ``allow_private`` an address that is not public is connected to directly.
    """

    _session: aiohttp.ClientSession

    def __init__(
        self,
        *,
        allow_private: bool = False,
        timeout: float = 10.0,
        clock: Callable[[], float] = time.time,
        resolver: AbstractResolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._timeout = timeout
        self._clock = clock
        self._resolver = resolver
        self._ssl_context = ssl_context
        self._proxy = proxy

    async def __aenter__(self) -> Self:
        connector = Connector(
            resolver=self._resolver,
            ssl=self._ssl_context or True,
            socket_factory=None if self._allow_private or self._proxy else open_public_socket,
            limit=0,  # whoever sends bounds it
            keepalive_timeout=_KEPT_OPEN,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": _USER_AGENT, "Content-Type": "application/json", "Accept-Encoding": "identity"},
            trust_env=False,
            auto_decompress=False,
            read_bufsize=_BUFFER,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, endpoint: WebhookEndpoint, event: Event) -> Attempt:
        """Make one attempt. Never raises for what the network or the receiver does."""
        body = endpoint.body(event)
        headers = endpoint.headers(event, body, timestamp=int(self._clock()))
        try:
            # The session's own time-out ends with the answer's head; this one also covers hanging up.
            async with asyncio.timeout(self._timeout):
                return await self._post(endpoint.url, body, headers)
        except TimeoutError:
            return Attempt(Outcome.TIMEOUT, f"no answer within {self._timeout:g} s")
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            return _no_connection(error)
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # A kind, no message: that may quote what the receiver sent. ValueError: a URL or an answer beyond reading;
            # RuntimeError: how uvloop tells some failures of a connection.
            return Attempt(Outcome.UNREACHABLE, f"no answer: {type(error).__name__}")

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> Attempt:
        # Leaving the block hangs up where the body has not arrived whole, so nobody waits for a long one.
        target = _verbatim(url)
        proxy = None if self._allow_private and is_private(target.host or "") else self._proxy
        async with self._session.post(
            target, data=body, headers=headers, allow_redirects=False, proxy=proxy
        ) as response:
            return _judge(response.status)


def _verbatim(url: str) -> URL:
    """Make a URL that is sent byte for byte: a receiver that signs its URLs compares bytes, and ``%2f`` is not ``%2F``.

    All behind the host is the path, the query and its question mark included: yarl would drop an empty query, and
    writes percent-encodings anew unless it is told that they are done.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    target = rest.removeprefix(authority)
    path = target if target.startswith("/") else f"/{target}"
    return URL.build(scheme=scheme.lower(), authority=authority, path=path, encoded=True)


def _judge(status: int) -> Attempt:
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Attempt(Outcome.DELIVERED)
    if status == HTTPStatus.GONE:
        return Attempt(Outcome.GONE, "status 410: the receiver wants no more events")
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return Attempt(Outcome.REJECTED, f"status {status}: redirects are not followed")
    return Attempt(Outcome.REJECTED, f"status {status}")


def _no_connection(error: aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError) -> Attempt:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Attempt(Outcome.UNREACHABLE, f"no connection: the proxy refused with status {error.status}")
    if isinstance(error.os_error, AddressNotAllowed):
        return Attempt(Outcome.FORBIDDEN, "the host leads to an address that is not public")
    by_proxy = " by the proxy" if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
    return Attempt(Outcome.UNREACHABLE, f"no connection{by_proxy}: {_reason(error.os_error)}")


def _reason(error: OSError) -> str:
    if error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or type(error).__name__  # of a name that is not found, or of TLS
