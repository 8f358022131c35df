"""The options of a provider's client that have to do with HTTP, for tests that are about something else."""

from typing import Any

from app.providers.http import HttpOptions, make_transport


def http_options(**changed: Any) -> HttpOptions:  # noqa: ANN401 - those of a client
    """Return them as the settings have them by default, but for those that are given."""
    return HttpOptions(
        connect_timeout=changed.get("connect_timeout", 3.0),
        timeout=changed.get("timeout", 10.0),
        max_connections=changed.get("max_connections", 100),
        transport=changed.get("transport") or make_transport(),
    )
