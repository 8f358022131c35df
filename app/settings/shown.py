"""How settings are shown to whoever runs the service: as the environment names them, without a secret."""

from collections.abc import Iterator
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

from app.settings.settings import Settings

_HIDDEN = "***"
# No secrets by themselves, but they name an account, or may hold a key in their path.
_ALSO_HIDDEN = frozenset({"PLUSOFON_USER_ID", "TRACING_ENDPOINT"})
_PLAIN = (str, int, float, Decimal, Path, IPv4Network, IPv6Network)


def shown_settings(settings: Settings) -> dict[str, str]:
    """Tell the settings that differ from their defaults. What is not known to be harmless is only told to be set."""
    return {name: _hidden(name, value) for name, value in _changed(settings, "")}


def _changed(section: BaseModel, prefix: str) -> Iterator[tuple[str, object]]:
    for field, about in type(section).model_fields.items():
        value, name = getattr(section, field), f"{prefix}{field}".upper()
        if isinstance(value, BaseModel):
            yield from _changed(value, f"{name}_")
        elif value != about.default:
            yield name, value


def _hidden(name: str, value: object) -> str:
    if name == "REDIS_URL" and isinstance(value, SecretStr):
        return _without_credentials(value.get_secret_value())
    if name in _ALSO_HIDDEN:
        return _HIDDEN
    if isinstance(value, dict):  # the settings of single clients
        return ",".join(value)
    return _written(value)


def _written(value: object) -> str:
    match value:
        case str() | int() | float() | Decimal() | Path() | IPv4Network() | IPv6Network():
            return str(value)
        case list() if all(isinstance(item, _PLAIN) for item in value):
            return ",".join(map(str, value))
        case _:
            return _HIDDEN


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{_HIDDEN + '@' if place[1] else ''}{place[2]}{parts.path}"
