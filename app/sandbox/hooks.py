"""The hooks of reverse calls: posted for real, tried three times, dropped if nobody takes them."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Self
from urllib.parse import urlsplit

import aiohttp

log = logging.getLogger(__name__)

_REPEATS = 2
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ValueError)  # what a host, or its URL, can do to a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A message for whoever asked for a reverse call. URL and body are not printed: they hold secrets and numbers."""

    url: str = field(repr=False)
    body: Mapping[str, str] = field(repr=False)
    as_form: bool


def check_hook_url(url: str) -> str:
    """Return ``url`` if a hook can be posted to it.

    Raises:
        ValueError: it is not ``http(s)://host…``; it is not repeated.

    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be an http(s) URL")
    return url


class HookPoster:
    """Posts each hook in a task of its own, while the context is open; leaving it ends those still under way.

    ``timeout`` and ``pause`` are seconds: for one attempt, and before the first repetition (the second waits double).
    """

    _http: aiohttp.ClientSession

    def __init__(self, *, timeout: float = 3.0, pause: float = 1.0) -> None:
        self._timeout = timeout
        self._pause = pause
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            # No connection is kept: whoever is posted to may be gone the next moment.
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()

    def post(self, hook: Hook) -> None:
        """Take a hook, to be posted soon."""
        task = asyncio.create_task(self._deliver(hook))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, hook: Hook) -> None:
        try:
            for repeat in range(_REPEATS + 1):
                await asyncio.sleep(repeat * self._pause)
                if await self._taken(hook):
                    return
            log.warning("sandbox.hook_dropped", extra={"attempts": _REPEATS + 1})
        except Exception:
            log.exception("sandbox.unexpected_error")

    async def _taken(self, hook: Hook) -> bool:
        try:
            async with self._http.post(
                hook.url,
                json=None if hook.as_form else dict(hook.body),
                data=dict(hook.body) if hook.as_form else None,
                allow_redirects=False,
            ) as answer:
                taken = HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES
                failure = f"HTTP {answer.status}"
        except _FAILURES as error:
            taken, failure = False, type(error).__name__  # a message could repeat the URL, which holds a secret
        if not taken:
            log.info("sandbox.hook_not_taken", extra={"why": failure})
        return taken
