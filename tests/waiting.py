"""How tests wait for what happens in the background, and bound how long something takes, on a machine of any pace."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from asgi_lifespan import LifespanManager
from starlette.types import ASGIApp

PATIENCE = 30.0
"""Seconds. It bounds a test that fails; no test that passes waits so long."""

_PAUSE = 0.005  # seconds between two looks
_TICK = 0.01  # seconds
T = TypeVar("T")


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` returns something true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, _late(condition)
        await asyncio.sleep(_PAUSE)


async def eventually(ask: Callable[[], Awaitable[T]], wanted: Callable[[T], object] = bool) -> T:
    """Ask again and again until the answer is ``wanted``, and return it."""
    deadline = time.monotonic() + PATIENCE
    while not wanted(answer := await ask()):
        assert time.monotonic() < deadline, f"{_late(wanted)}; the last answer was {answer!r}"
        await asyncio.sleep(_PAUSE)
    return answer


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` returns something true, where no event loop runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, _late(condition)
        time.sleep(_PAUSE)


@asynccontextmanager
async def timing() -> AsyncIterator[Callable[[], float]]:
    """Yield a function that returns how many seconds have passed, without those in which the event loop stood still.

    It is for upper bounds: it counts no tick longer than twice its length, however late the machine made it.
    """
    counted, last = 0.0, time.monotonic()

    def seconds() -> float:
        return counted + min(time.monotonic() - last, 2 * _TICK)

    async def tick() -> None:
        nonlocal counted, last
        while True:
            await asyncio.sleep(_TICK)
            counted, last = seconds(), time.monotonic()

    ticking = asyncio.create_task(tick())
    try:
        yield seconds
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])


def lifespan_of(app: ASGIApp) -> LifespanManager:
    """Run the lifespan of an application, which may take its time."""
    return LifespanManager(app, startup_timeout=PATIENCE, shutdown_timeout=PATIENCE)


def _late(condition: Callable[..., object]) -> str:
    """Say what a condition that was not met could see."""
    cells = getattr(condition, "__closure__", None) or ()
    return f"not met within {PATIENCE:g} s: {condition} of {[cell.cell_contents for cell in cells]}"
