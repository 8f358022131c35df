"""How tests wait for what happens in the background: until it has happened, however slow the machine is."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

PATIENCE = 30.0
"""Seconds. It bounds a test that fails; no test that passes waits so long."""

_PAUSE = 0.005  # seconds between two looks
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


def _late(condition: Callable[..., object]) -> str:
    """Say which condition was not met, and what it could see."""
    cells = getattr(condition, "__closure__", None) or ()
    return f"not met within {PATIENCE:g} s: {condition}, which sees {[cell.cell_contents for cell in cells]}"
