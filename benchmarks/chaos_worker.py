"""One worker of the service in the chaos test: the real application, with a provider in another process.

In sandbox mode a worker runs its own provider, and in production mode it requires HTTPS. Here all workers share one
provider on loopback, so its URL is set after the settings were validated; everything else is what
``plusofon-verify serve`` would run. The worker ends when its standard input ends, that is, with its parent.
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
    """Serve until a signal, or until the parent process ends."""
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    settings = _settings()
    configure_logging(level=settings.log.level, style=settings.log.format)
    uvicorn.run(_make_app(settings), **uvicorn_options(settings))


if __name__ == "__main__":
    main()
