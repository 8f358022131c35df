"""Gives each endpoint a lane of its own, so that a slow one holds up no other."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta

_LONGEST_PAUSE = 60.0  # seconds
_SHORTEST_PAUSE = 0.25
_LEARNING = 0.2  # the weight of the last delivery in what is thought of an endpoint's pace


class LaneFull(Exception):
    """An endpoint has as many deliveries as it may; ``pause`` is when its turn may have come."""

    def __init__(self, pause: timedelta) -> None:
        super().__init__(pause)
        self.pause = pause


class Lane:
    """The deliveries to one endpoint: at most ``slots`` in flight and ``places`` in all, those that wait included."""

    def __init__(self, *, slots: int, places: int, patience: float) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._width = slots
        self._places = places
        self._patience = patience
        self._turned_away = 0
        self._pace = 0.0  # seconds of a delivery, lately

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the slots.

        Raises:
            LaneFull: there is no place to wait, or none came free within ``patience`` seconds.

        """
        if not self._places:
            raise LaneFull(self._pause())
        self._places -= 1
        try:
            await self._acquire()
            began = time.monotonic()
            try:
                yield
            finally:
                self._pace += _LEARNING * (time.monotonic() - began - self._pace)
                self._slots.release()
        finally:
            self._places += 1

    async def _acquire(self) -> None:
        idle = not self._slots.locked()
        try:
            async with asyncio.timeout(self._patience):
                await self._slots.acquire()
        except TimeoutError:
            raise LaneFull(self._pause()) from None
        self._turned_away = 0 if idle else max(0, self._turned_away - 1)

    def _pause(self) -> timedelta:
        """Return when the turn of one more will come, if the endpoint goes on at its pace."""
        self._turned_away += 1
        pause = math.ceil(self._turned_away / self._width) * self._pace
        return timedelta(seconds=min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, pause)))


def make_lanes(
    urls: Collection[str], *, held: int, in_flight: int, in_flight_per_endpoint: int, patience: float
) -> dict[str, Lane]:
    """Share out among endpoints what may be held and what may be in flight: all lanes full at once are no more.

    Each has one place and one slot at least, however many there are.
    """
    distinct = set(urls)
    places = max(1, held // max(1, len(distinct)))
    slots = max(1, min(in_flight_per_endpoint, in_flight // max(1, len(distinct)), places))
    return {url: Lane(slots=slots, places=places, patience=patience) for url in distinct}
