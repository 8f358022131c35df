"""Writes that no caller waits for: they are repeated in the background until the store accepts them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import chain, repeat
from typing import Any

from app.verification.errors import StoreFailure, StoreUnavailable, VerificationError, VerificationNotFound
from app.verification.round_trip import in_one_round_trip

log = logging.getLogger(__name__)

_MAX_TASKS = 10_000  # beyond that, a write is attempted once and then dropped

Write = Callable[[], Awaitable[object]]
"""Makes an idempotent write each time it is called."""


@asynccontextmanager
async def store_deadline(seconds: float) -> AsyncIterator[None]:
    """Bound all waits for the store in a block together. Raise StoreUnavailable when they take longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise StoreUnavailable(StoreFailure.TIMEOUT) from None


async def best_effort(*writes: Awaitable[object]) -> bool:
    """Make writes in one round trip, log how many failed, and return whether none did."""
    return not await _failures(writes)


async def _failures(writes: Sequence[Awaitable[object]]) -> Sequence[VerificationError]:
    failed: list[VerificationError] = []
    for result in await in_one_round_trip(*writes):
        if isinstance(result, StoreUnavailable | VerificationNotFound):
            failed.append(result)
        elif isinstance(result, BaseException):
            raise result
    if failed:
        log.error("store.not_written", extra={"writes": len(failed), "error": repr(failed[0])})
    return failed


class DeferredWrites:
    """Repeats writes in the background until the store accepts them, or their verification must have expired.

    Args:
        pauses: seconds before each further attempt. A script whose reply was lost may run after the first attempt to
            undo it, so all of these are made. While the store is away, more follow after the last pause.
        timeout: seconds after which a write is given up: as long as a code is valid.

    """

    def __init__(self, *, pauses: Sequence[float] = (1.0, 3.0), timeout: float = 300.0) -> None:
        self._pauses = tuple(pauses)
        self._timeout = timeout
        self._tasks: set[asyncio.Task[object]] = set()
        self._closing = asyncio.Event()

    async def aclose(self) -> None:
        """Make the remaining attempts now, and wait for them."""
        self._closing.set()
        await asyncio.gather(*self._tasks)

    def start(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Run a coroutine in the background."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def write(self, *writes: Write) -> None:
        """Write, and wait for the first attempt; after a failure or a cancellation, go on in the background."""
        first = self.start(best_effort(*(write() for write in writes)))
        try:
            done = await asyncio.shield(first)
        except asyncio.CancelledError:
            self.start(self._repeat(writes))
            raise
        if not done:
            self.start(self._repeat(writes))

    def write_later(self, *writes: Write) -> None:
        """Write in the background only: at once, and again even if that succeeded."""
        self.start(best_effort(*(write() for write in writes)))
        self.start(self._repeat(writes))

    async def _repeat(self, writes: Sequence[Write]) -> None:
        if len(self._tasks) > _MAX_TASKS:  # without a refund limits are too strict for a while; memory is bounded
            log.error("store.write_dropped", extra={"writes": len(writes)})
            return
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timeout
        for attempt, pause in enumerate(chain(self._pauses, repeat(self._pauses[-1])), 1):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
            failures = await _failures([write() for write in writes])
            is_away = any(isinstance(failure, StoreUnavailable) for failure in failures)
            is_over = not is_away or self._closing.is_set() or clock() > deadline
            if attempt >= len(self._pauses) and is_over:
                return
