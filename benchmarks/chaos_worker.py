"""One worker of the service under chaos: the application as it is composed, but with the provider of another process.

In sandbox mode a worker brings a provider of its own, and in production mode it reaches one by HTTPS alone. Here all
workers share one on loopback, so its address is put into the settings after they were validated; everything else is
what ``plusofon-verify serve`` would run. Ends when its standard input does: with whoever started it.
"""

import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from app.cli.serving import uvicorn_options
from app.container import Container, open_container
from app.main import create_api
from app.settings import Mode, Settings, load_settings
from app.telemetry.logging import configure_logging

PROVIDER_URL = "CHAOS_PROVIDER_URL"


def _settings() -> Settings:
    settings = load_settings(mode=Mode.SANDBOX)
    plusofon = settings.plusofon.model_copy(update={"base_url": os.environ[PROVIDER_URL]})
    return settings.model_copy(update={"plusofon": plusofon})


def _make_app(settings: Settings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Container]]:
        async with open_container(settings, in_background=True) as container:
            yield {"container": container}

    return create_api(lifespan)


def _leave_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """Serve until killed, told to stop, or left alone."""
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    settings = _settings()
    configure_logging(level=settings.log.level, style=settings.log.format)
    uvicorn.run(_make_app(settings), **uvicorn_options(settings))


if __name__ == "__main__":
    main()
