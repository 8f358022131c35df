"""What each process that serves begins with: its logs, the application, and a garbage collector out of the way."""

import gc
import logging

from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings, SettingsError, load_settings
from app.settings.sections import LogSettings
from app.telemetry.logging import configure_logging

log = logging.getLogger(__name__)


def make_app() -> FastAPI:
    """Make the application of one worker of several, from the environment.

    The settings were right when the service started. Where they are not any more, a worker ends at once. On SIGHUP the
    workers there were go on, and no other is tried; in place of one that died others are, until the settings are right.
    """
    try:
        return make_app_of(load_settings())
    except SettingsError as error:
        _configure_logging(LogSettings())  # what the settings say of logs is not known
        log.error("service.settings_wrong", extra={"sentences": error.sentences})
        raise SystemExit(1) from None


def make_app_of(settings: Settings) -> FastAPI:
    """Make the application of a process that serves it."""
    _configure_logging(settings.log)
    app = create_app(settings)
    # What exists now stays: out of the collector's sight, which else walks it all on the hot path.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return app


def _configure_logging(wanted: LogSettings) -> None:
    configure_logging(level=wanted.level, style=wanted.format)
