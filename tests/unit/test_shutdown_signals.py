"""The stop event is set before the server handles a signal, and nothing else changes."""

import asyncio
import signal
from collections.abc import Iterator

import pytest

from app.server.shutdown import stop_signals
from tests.waiting import PATIENCE


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Handle SIGTERM as a server does, and return the signals it received."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)


async def test_a_signal_sets_the_event_and_is_passed_to_the_server(handled: list[int]) -> None:
    stopping = asyncio.Event()
    with stop_signals(stopping):
        assert not stopping.is_set()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(stopping.wait(), PATIENCE)
    assert handled == [signal.SIGTERM]


async def test_previous_handlers_are_restored(handled: list[int]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_signals(asyncio.Event()):
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


async def test_a_handler_set_in_the_meantime_is_not_replaced(handled: list[int]) -> None:
    with stop_signals(asyncio.Event()):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


async def test_a_signal_without_a_handler_keeps_its_default_action(handled: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fixture puts back what there was: coverage handles it
    with stop_signals(asyncio.Event()):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_no_handlers_are_installed_outside_the_main_thread(handled: list[int]) -> None:
    async def enter() -> bool:
        with stop_signals(stopping := asyncio.Event()):
            return stopping.is_set()

    assert not await asyncio.to_thread(lambda: asyncio.run(enter()))
