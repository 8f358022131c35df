"""Signals to stop: the application learns of them before the server begins to wait for the requests in progress."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType


@contextmanager
def stop_signals(stopping: asyncio.Event) -> Iterator[None]:
    """Set an event with SIGTERM or SIGINT, to end streams that would never end by themselves.

    The server installs its handlers before the application starts, and tells the application only after all requests
    have ended. So its handlers are wrapped: the event is set first. A signal without a handler keeps its default
    action. In a thread other than the main one nothing is done, because Python delivers signals to the main one only.
    """
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                stack.enter_context(_before_handler(number, lambda: loop.call_soon_threadsafe(stopping.set)))
        yield


@contextmanager
def _before_handler(number: signal.Signals, action: Callable[[], object]) -> Iterator[None]:
    handler = signal.getsignal(number)
    if not callable(handler):
        yield
        return

    def handle(received: int, frame: FrameType | None) -> None:
        action()
        handler(received, frame)

    signal.signal(number, handle)
    try:
        yield
    finally:
        if signal.getsignal(number) is handle:  # otherwise another handler was installed since, and stays
            signal.signal(number, handler)
