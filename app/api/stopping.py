"""Tells that the service was told to stop, before the server begins to wait for the requests in progress."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """Give an event that is set with SIGTERM or SIGINT, for what would else never end by itself.

    The server takes its signals before the application starts, and tells the application only once all its requests
    have ended. So whoever handles a signal now still does, after the event is on its way. A signal that nobody handles
    keeps its default action, and a thread other than the main one gets none (``signal`` of the standard library).
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                stack.enter_context(_heard_first(number, lambda: loop.call_soon_threadsafe(stopping.set)))
        yield stopping


@contextmanager
def _heard_first(number: signal.Signals, tell: Callable[[], object]) -> Iterator[None]:
    handler = signal.getsignal(number)
    if not callable(handler):
        yield
        return

    def hear(received: int, frame: FrameType | None) -> None:
        tell()
        handler(received, frame)

    signal.signal(number, hear)
    try:
        yield
    finally:
        if signal.getsignal(number) is hear:  # else somebody took it since, and gives it back
            signal.signal(number, handler)
