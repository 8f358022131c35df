"""Follows calls to their end: who looks which call up, when again, and when no more."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from app.verification.errors import ProviderError, StoreUnavailable
from app.verification.ports import CallId

log = logging.getLogger(__name__)

Follow = Callable[[CallId], Awaitable[bool]]
"""Looks a call up and writes its state down; True when it needs no more following.

Raises ProviderError (it could not be told now) or StoreUnavailable.
"""

_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(seconds=15)
_PAUSE_AFTER_ERROR = timedelta(seconds=30)  # a provider in trouble is not helped by being asked
_JITTER = 0.2  # a pause is up to this share shorter or longer, so that calls of one moment do not stay together

# The pauses of so many attempts add up to more than the five minutes of a code, however the jitter falls.
MOST_ATTEMPTS = 32

_UNTIL_MORE, _UNTIL_ANY = timedelta(milliseconds=200), timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class DueCall:
    """A claimed call, and how often it was claimed since it was scheduled, this time included."""

    name: CallId
    attempt: int


class CallQueue(Protocol):
    """The calls in flight, of all workers; none is kept for longer than an hour. All raise StoreUnavailable.

    Those who place calls see its first method alone, as CallSchedule.
    """

    async def schedule(self, name: CallId, delay: timedelta) -> None:
        """Have a call looked up after ``delay`` (minutes at most), as if it had never been; again: moves it."""

    async def claim(self, most: int) -> Sequence[DueCall]:
        """Take up to ``most`` calls that are due, the longest due first, and no more than all may look up in a second.

        Each is the claimer's alone for a lease; if by then it is neither ``done`` nor to be looked up again
        (``retry``), it is due anew.
        """

    async def retry(self, call: DueCall, delay: timedelta) -> None:
        """Have a claimed call looked up again after ``delay``; nothing happens if the claim is over."""

    async def done(self, name: CallId) -> None:
        """Look a call up no more. Harmless when repeated."""


class CallWatcher:
    """Looks up calls that are due, ``most`` at the same time.

    ``within`` is the time that one look-up has. It is shorter than the lease of a claim, so that no call is looked up
    by two at once.
    """

    def __init__(
        self, queue: CallQueue, follow: Follow, *, most: int = 5, within: timedelta = timedelta(seconds=20)
    ) -> None:
        self._queue = queue
        self._follow = follow
        self._most = most
        self._within = within

    async def step(self) -> timedelta:
        """Follow a few calls and tell how long to wait until the next step.

        Raises:
            StoreUnavailable: those calls that could not be written down are due again when their claims end.

        """
        calls = await self._queue.claim(self._most)
        results = await asyncio.gather(*map(self._handle, calls), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result
        return _UNTIL_MORE if calls else _UNTIL_ANY

    async def _handle(self, call: DueCall) -> None:
        """Follow one call. Nothing that happens here keeps others from being followed."""
        if call.attempt > MOST_ATTEMPTS:
            log.warning("call.given_up", extra=_facts(call))
            await self._queue.done(call.name)
            return
        pause = await self._look(call)
        if pause is None:
            await self._queue.done(call.name)
        else:
            await self._queue.retry(call, pause * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - no secret

    async def _look(self, call: DueCall) -> timedelta | None:
        """Look a call up; tell how long to wait until it is again, or none if it needs to be no more."""
        try:
            async with asyncio.timeout(self._within.total_seconds()):
                return None if await self._follow(call.name) else _pause_after(call.attempt)
        except StoreUnavailable:
            raise
        except ProviderError as error:
            log.warning("call.lookup_failed", extra={**_facts(call), "error": repr(error)})
        except Exception:
            log.exception("call.follow_failed", extra=_facts(call))
        return _PAUSE_AFTER_ERROR


def _pause_after(attempt: int) -> timedelta:
    """1 s, 2 s, 4 s, 8 s, and 15 s from then on."""
    return min(_FIRST_PAUSE * 2.0 ** (attempt - 1), _LONGEST_PAUSE)


def _facts(call: DueCall) -> dict[str, str | int]:
    return {"verification_id": call.name.verification_id, "serial": call.name.call_number, "attempt": call.attempt}
