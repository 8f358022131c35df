"""Logs: those of the service and of its libraries go to standard error, as JSON or in colours."""

import asyncio
import atexit
import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn, TextIO

import structlog
from pydantic_core import to_json
from structlog.types import EventDict, Processor

from app.verification import log_context

# Verbose at info, and what they log is in our own lines already.
_QUIET = ("httpx", "uvicorn.access", "asyncio")
_LEVELS = {level: logging.getLevelName(level).lower() for level in (logging.DEBUG, logging.INFO, logging.WARNING)}
_WRITTEN_AFTER = 0.02  # seconds for which a line of a request is held
_MOST_LINES = 1000  # at once


class LineBuffer:
    """A stream that holds lines for 20 ms, or until somebody flushes it. Made for one thread, that of the event loop.

    To render and to write many lines at once costs a third. Lines that are held are lost if the process is killed in
    these 20 ms; they are written when it exits.
    """

    def __init__(self, stream: TextIO, render: Callable[[EventDict], str]) -> None:
        self._stream = stream
        self._render = render
        self._lines: list[str | EventDict] = []
        self._timer: asyncio.TimerHandle | None = None
        atexit.register(self.flush)

    def write_later(self, fields: EventDict) -> None:
        """Hold the fields of a line; without a running event loop, write it at once."""
        self._lines.append(fields)
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(_WRITTEN_AFTER, self.flush)
            except RuntimeError:
                self.flush()
        elif len(self._lines) >= _MOST_LINES:
            self.flush()

    def write(self, text: str) -> None:
        """Write text after all that is held, at the next flush."""
        self._lines.append(text)

    def flush(self) -> None:
        """Write what is held."""
        lines, self._lines = self._lines, []
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if lines:
            texts = [line if isinstance(line, str) else self._render(line) + "\n" for line in lines]
            self._stream.write("".join(texts))
            self._stream.flush()


def configure_logging(*, level: str, style: str) -> None:
    """Send all logs to standard error; ``style`` is ``json``, ``console``, or ``auto`` (colours in a terminal)."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    before: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        stamp,
        _drop_color_message,
        _add_context,
    ]
    tail: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]
    render: Callable[[EventDict], str] = _to_json
    if console:
        # Tracebacks without the values of local variables: one of them may be a code.
        renderer = structlog.dev.ConsoleRenderer(
            colors=not os.environ.get("NO_COLOR"), exception_formatter=structlog.dev.plain_traceback
        )
        tail = [renderer]
        render = lambda fields: renderer(None, "", {**fields, "timestamp": f"{fields['timestamp']:%FT%T.%fZ}"})  # noqa: E731
    buffer = LineBuffer(sys.stderr, render)
    handler = logging.StreamHandler(buffer)  # flushes with each line
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
        )
    )
    structlog.configure(
        wrapper_class=_EventLogger,
        logger_factory=lambda *_: buffer,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)  # the warnings of Python too
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def disable_logging() -> None:
    """Log nothing: commands report their failures themselves."""
    logging.disable()
    structlog.configure(processors=[_drop])


def _drop(*_: object) -> NoReturn:
    raise structlog.DropEvent


class _EventLogger(structlog.BoundLoggerBase):
    """Structlog's own logger: the lines of requests and domain events, which are held for a moment.

    A line is made in one step, for structlog's processors cost three times as much.
    """

    def log(self, level: int, event: str, **fields: object) -> None:
        if logging.root.isEnabledFor(level):
            self._logger.write_later(
                {
                    "timestamp": datetime.now(UTC),
                    "level": _LEVELS[level],
                    "event": event,
                    **log_context.bound(),
                    **fields,
                }
            )


def _drop_color_message(_: object, __: str, event: EventDict) -> EventDict:
    """Drop the field that uvicorn adds for its own formatter."""
    event.pop("color_message", None)
    return event


def _add_context(_: object, __: str, event: EventDict) -> EventDict:
    """Add the fields of the request or step that logs; an event's own come first."""
    return {**log_context.bound(), **event}


def _to_json(event: EventDict, default: Callable[[Any], Any] = repr) -> str:
    return to_json(event, fallback=default).decode()
