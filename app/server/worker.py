"""The start of each process that serves: its logs, the application, and the garbage collector."""

import gc
import logging

from fastapi import FastAPI

from app.main import create_app
from app.sandbox.webhook_log import WebhookLog
from app.settings import Mode, Settings, SettingsError, load_settings
from app.settings.sections import LogSettings
from app.telemetry.logging import configure_logging

log = logging.getLogger(__name__)


def make_app() -> FastAPI:
    """Return the application of one of several workers, from the environment.

    The settings were valid when the service started. If they no longer are, the worker ends at once: after SIGHUP the
    old workers go on, and none of them is replaced; in place of a worker that died, others are started until they are.
    """
    try:
        return make_app_of(load_settings())
    except SettingsError as error:
        default = LogSettings()  # what the settings say of logs is not known
        configure_logging(level=default.level, style=default.format)
        log.error("service.settings_wrong", extra={"sentences": error.sentences})
        raise SystemExit(1) from None


def make_app_of(settings: Settings) -> FastAPI:
    """Return the application of this process, with logs configured and the garbage collector tuned for serving."""
    configure_logging(level=settings.log.level, style=settings.log.format)
    app = create_app(settings, webhook_log=WebhookLog() if settings.mode is Mode.SANDBOX else None)
    # The objects of now live as long as the process: frozen, the collector does not walk them while requests wait.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return app
