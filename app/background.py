"""Repeated work beside the requests, for as long as the service runs."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

from app.verification.errors import StoreUnavailable

log = logging.getLogger(__name__)

Step = Callable[[], Awaitable[timedelta]]
"""Does some work, and returns how long to wait until the next call."""


@dataclass(slots=True, kw_only=True, eq=False)
class Background:
    """Calls each added step repeatedly while the context is open.

    A step that fails is called again after ``first_pause``, which doubles with each failure up to ``longest_pause``,
    less a random share. When the context is closed, running steps are canceled and have ``grace`` to end.
    """

    first_pause: timedelta = timedelta(seconds=1)
    longest_pause: timedelta = timedelta(seconds=10)
    grace: timedelta = timedelta(seconds=3)
    _steps: dict[str, Step] = field(default_factory=dict, init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _last_success: dict[str, float] = field(default_factory=dict, init=False)
    _is_open: bool = field(default=False, init=False)

    def add(self, name: str, step: Step) -> None:
        """Add a step, before the context is opened."""
        self._steps[name] = step

    async def __aenter__(self) -> Self:
        self._is_open = True
        self._last_success = dict.fromkeys(self._steps, asyncio.get_running_loop().time())
        self._tasks = {asyncio.create_task(self._repeat(name), name=name) for name in self._steps}
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_open = False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _ended, stuck = await asyncio.wait(self._tasks, timeout=self.grace.total_seconds())
            if stuck:
                log.error("background.stuck", extra={"steps": sorted(task.get_name() for task in stuck)})

    def gauges(self) -> dict[str, float]:
        """Return the seconds since each step last succeeded; before its first success, since the context was opened."""
        now = asyncio.get_running_loop().time()
        return {name: now - moment for name, moment in self._last_success.items()}

    async def _repeat(self, name: str) -> None:
        task = asyncio.current_task()
        failures, is_store_missed = 0, False
        while self._is_open:  # a step may have swallowed the cancellation
            try:
                pause = await self._steps[name]()
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                    raise  # this task is canceled, and not just something that its step waited for
                failures += 1
                pause = self._pause_after(failures)
                if not isinstance(error, StoreUnavailable):
                    log.exception("background.step_failed", extra={"step": name})
                elif not is_store_missed:
                    log.warning("background.store_unavailable", extra={"step": name, "reason": error.reason})
                    is_store_missed = True
            else:
                if is_store_missed:
                    log.info("background.store_available", extra={"step": name})
                failures, is_store_missed = 0, False
                self._last_success[name] = asyncio.get_running_loop().time()
            if self._is_open:
                await asyncio.sleep(pause.total_seconds())

    def _pause_after(self, failures: int) -> timedelta:
        """Double the pause with each failure; the exponent is bounded, so that the float does not overflow."""
        longest = min(self.first_pause * 2.0 ** min(failures - 1, 16), self.longest_pause)
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads the workers, no secret
