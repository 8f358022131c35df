"""The options of a provider's client that have to do with HTTP, for tests that are about something else."""

from typing import Any

from app.providers.http import make_transport


def http_options(**changed: Any) -> dict[str, Any]:  # noqa: ANN401 - those of a client
    """Return them as the settings have them by default, but for those that are given."""
    options = {"connect_timeout": 3.0, "timeout": 10.0, "max_connections": 100, **changed}
    return options if options.get("transport") else {**options, "transport": make_transport()}
