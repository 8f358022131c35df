"""Sends the provider's callbacks about reverse calls, each up to three times."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Self

import aiohttp

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ValueError)  # ValueError: of an unusual URL


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCallback:
    """A callback to the URL of a reverse call. Its repr omits the URL and the body: they hold secrets and numbers."""

    url: str = field(repr=False)
    body: Mapping[str, str] = field(repr=False)
    as_form: bool


@dataclass(kw_only=True)
class CallbackSender:
    """Sends each callback in a separate task while the context is open; on exit the tasks are cancelled.

    ``timeout`` is for one attempt, in seconds; ``pause`` is before the second attempt, and doubles before the third.
    """

    timeout: float = 3.0
    pause: float = 1.0
    _http: aiohttp.ClientSession = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            # No connection is kept: the receiver may be gone the next moment.
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()

    def send(self, callback: ProviderCallback) -> None:
        """Start to send a callback."""
        task = asyncio.create_task(self._deliver(callback))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, callback: ProviderCallback) -> None:
        try:
            for attempt in range(_ATTEMPTS):
                await asyncio.sleep(attempt * self.pause)
                if await self._is_accepted(callback):
                    return
            log.warning("sandbox.callback_dropped", extra={"attempts": _ATTEMPTS})
        except Exception:
            log.exception("sandbox.unexpected_error")

    async def _is_accepted(self, callback: ProviderCallback) -> bool:
        body = dict(callback.body)
        json, data = (None, body) if callback.as_form else (body, None)
        try:
            async with self._http.post(callback.url, json=json, data=data, allow_redirects=False) as answer:
                if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
                    return True
                failure = f"HTTP {answer.status}"
        except _FAILURES as error:
            failure = type(error).__name__  # its message could repeat the URL, which holds a secret
        log.info("sandbox.callback_rejected", extra={"why": failure})
        return False
