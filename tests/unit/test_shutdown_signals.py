"""The stop event is set before the server handles a signal, and nothing else changes."""

import asyncio
import signal
from collections.abc import Iterator

import pytest

from app.server.shutdown import stop_signals


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """What a server that handles SIGTERM was told."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    yield told
    signal.signal(signal.SIGTERM, before)


async def test_a_signal_sets_the_event_and_reaches_the_server(handled: list[int]) -> None:
    stopping = asyncio.Event()
    with stop_signals(stopping):
        assert not stopping.is_set()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(stopping.wait(), 1)
    assert handled == [signal.SIGTERM]


async def test_the_servers_handlers_are_put_back(handled: list[int]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_signals(asyncio.Event()):
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


async def test_a_handler_that_was_set_since_stays(handled: list[int]) -> None:
    with stop_signals(asyncio.Event()):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


async def test_a_signal_that_nobody_handles_keeps_its_default_action(handled: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fixture puts back what there was: coverage handles it
    with stop_signals(asyncio.Event()):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_in_another_thread_there_are_no_signals(handled: list[int]) -> None:
    async def enter() -> bool:
        with stop_signals(stopping := asyncio.Event()):
            return stopping.is_set()

    assert not await asyncio.to_thread(lambda: asyncio.run(enter()))
