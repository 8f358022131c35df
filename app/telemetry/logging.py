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
    # Tracebacks without the values of local variables: one of them may be a code.
    tail: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]
    )
    buffer = LineBuffer(sys.stderr)
    handler = logging.StreamHandler(buffer)  # flushes with each line
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
        )
    )
    structlog.configure(
        processors=[structlog.processors.add_log_level, stamp, *tail],
        wrapper_class=(structlog.make_filtering_bound_logger if console else _make_json_logger)(level),
        logger_factory=lambda *_: _RequestLogger(buffer),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)  # the warnings of Python too
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _make_json_logger(min_level: str) -> type[structlog.BoundLoggerBase]:
    """Return a class of loggers that write JSON in one step: structlog's processors cost three times as much."""
    least = logging.getLevelNamesMapping()[min_level.upper()]

    class JsonLogger(structlog.BoundLoggerBase):
        def log(self, level: int, event: str, **fields: object) -> None:
            if level >= least:
                name = logging.getLevelName(level).lower()
                fields |= {"event": event, "level": name, "timestamp": datetime.now(UTC)}
                self._logger.msg(to_json(fields, fallback=repr).decode())

    return JsonLogger


class _RequestLogger:
    """Where structlog's own loggers write: one line for each request, held for a moment."""

    def __init__(self, buffer: LineBuffer) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = buffer.write_later


def _drop_color_message(_: object, __: str, event: EventDict) -> EventDict:
    """Drop the field that uvicorn adds for its own formatter."""
    event.pop("color_message", None)
    return event


def _to_json(event: EventDict, default: Callable[[Any], Any]) -> str:
    return to_json(event, fallback=default).decode()
