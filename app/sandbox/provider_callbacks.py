"""Sends the provider's callbacks about reverse calls, each up to three times."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_TIMEOUT = 3.0  # seconds of an attempt
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ValueError)  # ValueError: of an unusual URL


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCallback:
    """A callback to the URL of a reverse call. Its repr omits the URL and the body: they hold secrets and numbers."""

    url: str = field(repr=False)
    body: Mapping[str, str] = field(repr=False)
    as_form: bool


@asynccontextmanager
async def open_callback_sender(*, pause: float) -> AsyncIterator[Callable[[ProviderCallback], None]]:
    """Yield a function that sends a callback in a separate task; when the context closes, the tasks are cancelled.

    ``pause`` is before the second attempt, in seconds, and doubles before the third.
    """
    tasks: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(
        # No connection is kept: the receiver may be gone the next moment.
        connector=aiohttp.TCPConnector(force_close=True),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as http:

        def send(callback: ProviderCallback) -> None:
            task = asyncio.create_task(_deliver(http, callback, pause))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        try:
            yield send
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _deliver(http: aiohttp.ClientSession, callback: ProviderCallback, pause: float) -> None:
    try:
        for attempt in range(_ATTEMPTS):
            await asyncio.sleep(attempt * pause)
            if await _is_accepted(http, callback):
                return
        log.warning("sandbox.callback_dropped", extra={"attempts": _ATTEMPTS})
    except Exception:
        log.exception("sandbox.unexpected_error")


async def _is_accepted(http: aiohttp.ClientSession, callback: ProviderCallback) -> bool:
    json, data = (None, callback.body) if callback.as_form else (callback.body, None)
    try:
        async with http.post(callback.url, json=json, data=data, allow_redirects=False) as answer:
            if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
                return True
            failure = f"HTTP {answer.status}"
    except _FAILURES as error:
        failure = type(error).__name__  # its message could repeat the URL, which holds a secret
    log.info("sandbox.callback_rejected", extra={"why": failure})
    return False
