"""Gives each endpoint a lane of its own, so that a slow one holds up no other."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta

_MIN_PAUSE, _MAX_PAUSE = 0.25, 60.0  # seconds
_SMOOTHING = 0.2  # the weight of the last delivery in the average time of a delivery


class LaneFull(Exception):
    """An endpoint has as many deliveries as it may; ``pause`` is when there may be room again."""

    def __init__(self, pause: timedelta) -> None:
        super().__init__(pause)
        self.pause = pause


class Lane:
    """The deliveries to one endpoint: at most ``slots`` in flight, and ``places`` in all with those that wait.

    A delivery waits for a slot for ``timeout`` seconds.
    """

    def __init__(self, *, slots: int, places: int, timeout: float) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._width = slots
        self._places = places
        self._timeout = timeout
        self._turned_away = 0
        self._pace = 0.0  # seconds of a delivery, on average

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the slots. Raises LaneFull if there is no place to wait, or no slot came free in time."""
        if not self._places:
            raise LaneFull(self._pause())
        self._places -= 1
        try:
            idle = not self._slots.locked()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._slots.acquire()
            except TimeoutError:
                raise LaneFull(self._pause()) from None
            self._turned_away = 0 if idle else max(0, self._turned_away - 1)
            began = time.monotonic()
            try:
                yield
            finally:
                self._pace += _SMOOTHING * (time.monotonic() - began - self._pace)
                self._slots.release()
        finally:
            self._places += 1

    def _pause(self) -> timedelta:
        """Return when one more delivery will have a slot, at the present pace of the endpoint."""
        self._turned_away += 1
        pause = math.ceil(self._turned_away / self._width) * self._pace
        return timedelta(seconds=min(_MAX_PAUSE, max(_MIN_PAUSE, pause)))


def make_lanes(
    urls: Collection[str], *, held: int, in_flight: int, in_flight_per_endpoint: int, timeout: float
) -> dict[str, Lane]:
    """Divide what may be held and what may be in flight among endpoints, so that all lanes together stay within it.

    Each has one place and one slot at least, however many there are.
    """
    distinct = set(urls)
    places = max(1, held // max(1, len(distinct)))
    slots = max(1, min(in_flight_per_endpoint, in_flight // max(1, len(distinct)), places))
    return {url: Lane(slots=slots, places=places, timeout=timeout) for url in distinct}
