"""Sends one request to Plusofon and reads its answer: within one time budget, and never a request that may be there."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy

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
from app.providers.plusofon import wire
from app.providers.plusofon.wire import Answer
from app.verification.errors import ProviderUnavailable

log = logging.getLogger(__name__)

_SHORTEST_TIMEOUT = 0.001  # zero would mean none


class Exchange:
    """Carries requests to the provider and answers back; knows nothing of what they mean.

    Each request has a connection of its own. On a kept one, an answer that nobody asked for (a second one to an earlier
    request) would be taken for the next request's: aiohttp 3.14 looks for such data when it puts a connection back, not
    when it takes it out. And a kept connection that the server closes at that very moment would leave a call unknown.
    The price is a handshake for each call.
    """

    def __init__(
        self,
        *,
        base_url: str,
        user_id: str,
        connect_timeout: float,
        timeout: float,
        max_connections: int,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        # The other way round, the budget could end while connecting, and a call that never happened would look unclear.
        if not 0 < connect_timeout < timeout:
            raise ValueError("connect_timeout must be positive and shorter than timeout")
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        # Places are counted here, for aiohttp does not tell a lack of them from a connection that takes too long.
        self._places = asyncio.Semaphore(max_connections)
        self._http = httpx.AsyncClient(
            base_url=checked_url(base_url),
            headers={
                "Client": header_value("user_id", user_id),
                "Accept": "application/json",
                # A compressed answer could be a thousand times longer than what is read of it.
                "Accept-Encoding": "identity",
                "Connection": "close",
                "Content-Type": "application/json",
                "User-Agent": "plusofon-verify",
            },
            transport=transport or make_transport(),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none: each request stands for itself
            follow_redirects=False,
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close the connections. No request may be sent after this."""
        await self._http.aclose()

    async def send(
        self,
        method: str,
        path: str,
        token: str,
        body: object = None,
        *,
        redact: Redactor,
        within: float | None = None,
    ) -> Answer:
        """Send one request and read its answer, all within the time budget; a connection may be tried for twice.

        Where fewer seconds than usual are left (``within``), half of them are for the connection at most.

        Raises:
            ProviderUnavailable: it was never written.
            Unclear: it was, or may have been.

        """
        # The errors of aiohttp carry the headers of the request, and with them the token: only ours are a cause.
        request = self._http.build_request(method, path, headers={"Authorization": f"Bearer {token}"}, json=body)
        try:
            seconds = min(self._timeout, within) if within is not None else self._timeout
            async with asyncio.timeout(seconds) as budget:
                return await self._connect_and_send(request, redact, seconds, budget.when() or 0)
        except NeverSent as error:
            raise ProviderUnavailable(retry_after=DEFAULT_RETRY_AFTER) from error
        except TimeoutError:
            raise Unclear("TimeoutError") from None

    async def _connect_and_send(
        self, request: httpx.Request, redact: Redactor, seconds: float, deadline: float
    ) -> Answer:
        """Try once, and a second time if no connection was made and the time that is left has room for one."""
        now = asyncio.get_running_loop().time
        connect_by = now() + min(self._connect_timeout, seconds / 2)
        async with self._place(until=connect_by):
            async for attempt in tries(self._connect_timeout, until=deadline):
                with attempt:
                    connect = connect_by - now() if attempt.num == 1 else self._connect_timeout
                    return await _exchange(self._http, _with_timeout(request, connect), redact)
        raise AssertionError  # the last attempt returns or raises

    @asynccontextmanager
    async def _place(self, *, until: float) -> AsyncIterator[None]:
        """Hold one of the places for connections."""
        try:
            async with asyncio.timeout_at(until):
                await self._places.acquire()
        except TimeoutError:
            raise _meaning(httpx.PoolTimeout("")) from None
        try:
            yield
        finally:
            self._places.release()


async def _exchange(http: httpx.AsyncClient, request: httpx.Request, redact: Redactor) -> Answer:
    """Send a request over a new connection, and read its answer. Raises ``NeverSent`` or ``Unclear``."""
    try:
        response = await http.send(request, stream=True)
        try:
            body = await read_beginning(response)
        finally:
            await response.aclose()
    except NETWORK_ERRORS as error:
        raise _meaning(error) from None
    except Exception:
        log.exception("plusofon.unexpected_error")
        raise Unclear("an unexpected error") from None
    return wire.read_answer(response.status_code, body, retry_after=response.headers.get("Retry-After"), redact=redact)


def _with_timeout(request: httpx.Request, connect: float) -> httpx.Request:
    """Limit the time for the address, the connection and TLS, together (``pool`` is what httpx-aiohttp 0.2 goes by).

    None for reading: that limit is per chunk, which a dripping body never meets. The budget limits the whole.
    """
    limit = max(connect, _SHORTEST_TIMEOUT)
    request.extensions["timeout"] = httpx.Timeout(None, connect=limit, pool=limit).as_dict()
    return request


def _meaning(error: Exception) -> NeverSent | Unclear:
    """Return what an error of the network means, and note each try that did not get there."""
    told = failure(error)
    if isinstance(told, NeverSent):
        log.warning(
            "plusofon.not_reached", extra={"reason": told.reason, "error": told.why, "detail": told.detail or None}
        )
    return told


def header_value(name: str, value: str) -> str:
    """Let through what can stand in a header: a line feed from a file of secrets is the usual mistake.

    Raises:
        ValueError: it cannot; the value is not repeated.

    """
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"{name} must be printable ASCII without spaces")
    return value


def secrets_of_url(url: str) -> Iterable[str]:
    """Return what must not be repeated of a URL that holds a secret: the whole, and each part long enough to be one."""
    return [url, *(part for part in re.split(r"[/?&=#]", url) if len(part) > len("plusofon"))]
