"""Writes that nobody has to wait for: refunds and notes that are made good in the background once the store answers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import chain, repeat
from typing import Any

from app.verification.errors import StoreFailure, StoreUnavailable, VerificationError, VerificationNotFound

log = logging.getLogger(__name__)

Write = Callable[[], Awaitable[object]]
"""Writes once more each time it is called; harmless when it is repeated."""


@asynccontextmanager
async def store_deadline(seconds: float) -> AsyncIterator[None]:
    """Bound all waits for the store in a block together. Raises StoreUnavailable when they took too long."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise StoreUnavailable(StoreFailure.TIMEOUT) from None


async def best_effort(*writes: Awaitable[object]) -> bool:
    """Do what should be done, in one round trip, and return whether all of it was; log how much was not."""
    return not await _failures(writes)


async def _failures(writes: Sequence[Awaitable[object]]) -> Sequence[VerificationError]:
    failed: list[VerificationError] = []
    for result in await asyncio.gather(*writes, return_exceptions=True):
        if isinstance(result, StoreUnavailable | VerificationNotFound):
            failed.append(result)
        elif isinstance(result, BaseException):
            raise result
    if failed:
        log.error("store.not_written", extra={"writes": len(failed), "error": repr(failed[0])})
    return failed


class DeferredWrites:
    """Repeats writes in the background until the store takes them, or what they tell of must have expired.

    Args:
        pauses: seconds before each further attempt. A script whose reply was lost may run after a first attempt to undo
            it, so all of these are made. While the store is away, more follow after the last pause.
        patience: seconds after which it is given up: longer than a code lives.
        most: how many may be under way; beyond that, one is attempted once and then dropped.

    """

    def __init__(self, *, pauses: Sequence[float] = (1.0, 3.0), patience: float = 300.0, most: int = 10_000) -> None:
        self._pauses = tuple(pauses)
        self._patience = patience
        self._most = most
        self._tasks: set[asyncio.Task[object]] = set()
        self._closing = asyncio.Event()

    async def aclose(self) -> None:
        """Make all further attempts now, and wait for them."""
        self._closing.set()
        await asyncio.gather(*self._tasks)

    def start(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Run something in the background."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def write(self, *writes: Write) -> None:
        """Write, and wait for the first attempt; what fails, or is canceled, goes on in the background."""
        first = self.start(best_effort(*(write() for write in writes)))
        try:
            done = await asyncio.shield(first)
        except asyncio.CancelledError:
            self.start(self._repeat(writes))
            raise
        if not done:
            self.start(self._repeat(writes))

    def write_later(self, *writes: Write) -> None:
        """Write in the background alone: at once, and again whether or not that succeeded."""
        self.start(best_effort(*(write() for write in writes)))
        self.start(self._repeat(writes))

    async def _repeat(self, writes: Sequence[Write]) -> None:
        if len(self._tasks) > self._most:  # too strict for a while, never out of memory
            log.error("store.write_dropped", extra={"writes": len(writes)})
            return
        clock = asyncio.get_running_loop().time
        given_up_at = clock() + self._patience
        for attempt, pause in enumerate(chain(self._pauses, repeat(self._pauses[-1])), 1):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
            failures = await _failures([write() for write in writes])
            is_away = any(isinstance(failure, StoreUnavailable) for failure in failures)
            is_over = not is_away or self._closing.is_set() or clock() > given_up_at
            if attempt >= len(self._pauses) and is_over:
                return
