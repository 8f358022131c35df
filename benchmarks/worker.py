"""The service in production mode, as ``plusofon-verify serve`` runs it, but with a provider reached in the clear.

Production takes a provider by HTTPS alone. To measure a start without what TLS costs, the address of the stub is put
into the settings after they were validated. ``bench.py`` starts it.
"""

import os
import sys

import uvicorn

from app.cli.serving import uvicorn_options
from app.server.worker import make_app_of
from app.settings import load_settings

PROVIDER_URL = "BENCH_PROVIDER_URL"


def main() -> None:
    """Serve until a signal stops it; the arguments are those of ``serve``."""
    os.environ["HOST"], os.environ["PORT"] = sys.argv[2], sys.argv[4]
    settings = load_settings()
    plusofon = settings.plusofon.model_copy(update={"base_url": os.environ[PROVIDER_URL]})
    settings = settings.model_copy(update={"plusofon": plusofon})
    uvicorn.run(make_app_of(settings), **uvicorn_options(settings))


if __name__ == "__main__":
    main()
