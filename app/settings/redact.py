"""How settings are shown to whoever runs the service: as the environment names them, without a secret."""

from decimal import Decimal
from functools import reduce
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.settings.settings import Settings, setting_names

_HIDDEN = "***"
_PLAIN = (str, int, float, Decimal, Path, IPv4Network, IPv6Network)


def redacted_settings(settings: Settings) -> dict[str, str]:
    """Return the settings that differ from their defaults, with ``***`` in place of what is or may be secret."""
    defaults = Settings.model_construct()
    shown = {}
    for name, setting in setting_names().items():
        value = reduce(getattr, setting.path, settings)
        if value != reduce(getattr, setting.path, defaults):
            shown[name] = _shown(name, value, is_secret=setting.is_secret)
    return shown


def _shown(name: str, value: object, *, is_secret: bool) -> str:
    if name == "REDIS_URL" and isinstance(value, SecretStr):
        return _without_credentials(value.get_secret_value())
    if isinstance(value, dict):  # the settings of single clients
        return ",".join(value)
    return _HIDDEN if is_secret else _written(value)


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
