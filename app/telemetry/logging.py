"""Logs: those of the service and of its libraries go to standard error, as JSON or in colours."""

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog
from pydantic_core import to_json
from structlog.types import EventDict, Processor

from app.telemetry.line_buffer import LineBuffer

# Verbose at info, and what they log is in our own lines already.
_QUIET = ("httpx", "uvicorn.access", "asyncio")


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
    ]
    tail: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]
    render_request: Callable[[EventDict], str] = _to_json
    if console:
        # Tracebacks without the values of local variables: one of them may be a code.
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        tail = [renderer]
        render_request = lambda fields: renderer(None, "", stamp(None, "", fields))  # noqa: E731
    buffer = LineBuffer(sys.stderr)
    handler = logging.StreamHandler(buffer)  # flushes with each line
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
        )
    )
    structlog.configure(
        wrapper_class=_make_request_logger(level, render_request),
        logger_factory=lambda *_: buffer,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)  # the warnings of Python too
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _make_request_logger(min_level: str, render: Callable[[EventDict], str]) -> type[structlog.BoundLoggerBase]:
    """Return the class of structlog's own loggers: a line for each request, which is held for a moment.

    It is made in one step, for structlog's processors cost three times as much.
    """
    least = logging.getLevelNamesMapping()[min_level.upper()]

    class RequestLogger(structlog.BoundLoggerBase):
        def log(self, level: int, event: str, **fields: object) -> None:
            if level >= least:
                name = logging.getLevelName(level).lower()
                fields |= {"event": event, "level": name, "timestamp": datetime.now(UTC)}
                self._logger.write_later(render(fields))

    return RequestLogger


def _drop_color_message(_: object, __: str, event: EventDict) -> EventDict:
    """Drop the field that uvicorn adds for its own formatter."""
    event.pop("color_message", None)
    return event


def _to_json(event: EventDict, default: Callable[[Any], Any] = repr) -> str:
    return to_json(event, fallback=default).decode()
