"""Signals to stop: the application learns of them before the server begins to wait for the requests in progress."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals(stopping: asyncio.Event) -> Iterator[None]:
    """Set an event with SIGTERM or SIGINT, to end streams that would never end by themselves.

    The server installs its handlers before the application starts, and tells the application only after all requests
    have ended. So its handlers are wrapped: the event is set first. A signal without a handler keeps its default
    action. In a thread other than the main one nothing is done, because Python delivers signals to the main one only.
    """
    loop = asyncio.get_running_loop()
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        handlers = {number: handler for number, handler in found.items() if callable(handler)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopping.set)
        handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is handle:  # otherwise another handler was installed since, and stays
                signal.signal(number, handler)
