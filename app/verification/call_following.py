"""Scheduling of call following: which calls are due, in what pauses, and when they are given up."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from app.verification import log_context
from app.verification.errors import ProviderError, StoreUnavailable
from app.verification.ports import CallId, CallSchedule

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(seconds=15)
_PAUSE_AFTER_ERROR = timedelta(seconds=30)  # no load on a provider that fails
_JITTER = 0.2  # a pause is up to this share shorter or longer, so that simultaneous calls spread out

MAX_ATTEMPTS = 32  # their pauses add up to more than the five minutes of a code, whatever the jitter

_CONCURRENCY = 5  # calls followed at the same time by one worker
_BUSY_PAUSE, _IDLE_PAUSE = timedelta(milliseconds=200), timedelta(seconds=1)  # between steps


@dataclass(frozen=True, slots=True)
class DueCall:
    """A claimed call; ``attempt`` counts the claims since it was scheduled, from 1."""

    call_id: CallId
    attempt: int


class CallQueue(CallSchedule, Protocol):
    """The calls to follow, of all workers; none is stored for longer than an hour. All raise StoreUnavailable."""

    async def claim(self, most: int) -> Sequence[DueCall]:
        """Claim up to ``most`` due calls, the longest due first, within the rate limit of all workers together.

        A claim is exclusive for a lease; a call that is neither ``done`` nor to ``retry`` by then is due again.
        """

    async def retry(self, call: DueCall, delay: timedelta) -> None:
        """Make a claimed call due after ``delay``; does nothing if the claim has ended."""

    async def done(self, call_id: CallId) -> None:
        """Stop following a call. Idempotent."""


@dataclass(frozen=True, slots=True)
class CallWatcher:
    """Follows the calls that are due. ``follow`` returns True if a call needs no more following.

    ``timeout`` bounds the following of one call. It is shorter than the lease of a claim, so that no two workers follow
    one call at once.
    """

    queue: CallQueue
    follow: Callable[[CallId], Awaitable[bool]]
    timeout: timedelta = timedelta(seconds=20)

    async def step(self) -> timedelta:
        """Follow a few calls, and return the pause until the next step.

        Raise StoreUnavailable: the calls that could not be recorded are due again when their claims end.
        """
        calls = await self.queue.claim(_CONCURRENCY)
        results = await asyncio.gather(*map(self._handle, calls), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result
        return _BUSY_PAUSE if calls else _IDLE_PAUSE

    async def _handle(self, call: DueCall) -> None:
        """Follow one call, unless it is given up. Its errors do not keep others from being followed."""
        call_id = call.call_id
        log_context.begin(verification_id=call_id.verification_id, call_number=call_id.call_number)
        attempt = {"attempt": call.attempt}
        if call.attempt > MAX_ATTEMPTS:
            log.warning("call.given_up", extra=attempt)
            await self.queue.done(call_id)
            return
        pause = min(_FIRST_PAUSE * 2.0 ** (call.attempt - 1), _LONGEST_PAUSE)  # 1 s, 2 s, 4 s, 8 s, then 15 s
        try:
            async with asyncio.timeout(self.timeout.total_seconds()):
                is_done = await self.follow(call_id)
        except StoreUnavailable:
            raise
        except ProviderError as error:
            log.warning("call.lookup_failed", extra={**attempt, "kind": error.kind, "reason": error.reason})
            is_done, pause = False, _PAUSE_AFTER_ERROR
        except Exception:
            log.exception("call.follow_failed", extra=attempt)
            is_done, pause = False, _PAUSE_AFTER_ERROR
        if is_done:
            await self.queue.done(call_id)
        else:
            await self.queue.retry(call, pause * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - no secret
