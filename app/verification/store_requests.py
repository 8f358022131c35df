"""Requests to the store: several in one round trip, bounded in time, or repeated until the store accepts them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from itertools import chain, repeat
from types import TracebackType
from typing import Any

from app.verification.errors import StoreFailure, StoreUnavailable, VerificationError, VerificationNotFound

log = logging.getLogger(__name__)

_MAX_TASKS = 10_000  # beyond that, a write is attempted once and then dropped

Request = Coroutine[Any, Any, Any]
Write = Callable[[], Request]
"""Makes an idempotent write each time it is called."""


class StoreDeadline:
    """Bounds all waits for the store in a block together. Raises StoreUnavailable when they take longer."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, raised, traceback)
        except TimeoutError:
            raise StoreUnavailable(StoreFailure.TIMEOUT) from None


class _Running:
    """A request that runs in the caller's task, up to the next future that it waits for (None: for others to run)."""

    __slots__ = ("is_done", "request", "result", "waits_for")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.is_done = False
        self.proceed()

    def proceed(self, error: BaseException | None = None) -> None:
        """Run until the request waits or ends. ``error`` is that of the future that it has waited for."""
        try:
            self.waits_for = self.request.throw(error) if error else self.request.send(None)
        except StopIteration as end:
            self.result, self.is_done = end.value, True
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001 - the caller sees to it
            self.result, self.is_done = raised, True
        else:
            if self.waits_for:  # say that it was not passed to the task yet, as the task itself does with what it gets
                self.waits_for._asyncio_future_blocking = False  # noqa: SLF001 - the protocol of futures


async def in_one_round_trip(*requests: Request) -> list[Any]:
    """Make requests side by side; return their results and exceptions in order, as ``asyncio.gather`` can.

    All run in the caller's task, since one of its own costs more than most of what they do. So none may wait for
    another of them, or have an ``asyncio.timeout`` of its own, which would cancel them all.
    """
    if len(requests) == 1:
        try:
            return [await requests[0]]
        except Exception as error:  # noqa: BLE001 - the caller sees to it
            return [error]
    running = [_Running(request) for request in requests]
    try:
        await _finish(running)
    except asyncio.CancelledError as error:
        for each in running:
            if not each.is_done:
                each.proceed(error)
        await _finish(running)
        raise
    return [each.result for each in running]


async def _finish(running: Sequence[_Running]) -> None:
    while waiting := [each for each in running if not each.is_done]:
        for each in waiting:
            try:
                await (each.waits_for or asyncio.sleep(0))
            except Exception as error:  # noqa: BLE001 - it is the request's
                each.proceed(error)
            else:
                each.proceed()


async def best_effort(*writes: Request) -> Sequence[VerificationError]:
    """Make writes in one round trip; log how many failed, and return why."""
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

    def start(self, work: Request) -> asyncio.Task[object]:
        """Run a coroutine in the background."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def write(self, *writes: Write) -> None:
        """Write, and wait for the first attempt; after a failure or a cancellation, go on in the background."""
        if not writes:
            return
        first = self.start(best_effort(*(write() for write in writes)))
        try:
            failed = await asyncio.shield(first)
        except asyncio.CancelledError:
            self.start(self._repeat(writes))
            raise
        if failed:
            self.start(self._repeat(writes))

    def write_later(self, *writes: Write) -> None:
        """Write in the background only: at once, and again even if that succeeded."""
        if not writes:
            return
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
            failures = await best_effort(*(write() for write in writes))
            is_away = any(isinstance(failure, StoreUnavailable) for failure in failures)
            is_over = not is_away or self._closing.is_set() or clock() > deadline
            if attempt >= len(self._pauses) and is_over:
                return
