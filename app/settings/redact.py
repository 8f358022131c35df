"""The settings as shown in logs and by commands: without secrets."""

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
    redacted = {}
    for name, setting in setting_names().items():
        value = reduce(getattr, setting.path, settings)
        if value != reduce(getattr, setting.path, defaults):
            redacted[name] = _redact(name, value, is_secret=setting.is_secret)
    return redacted


def _redact(name: str, value: object, *, is_secret: bool) -> str:
    if name == "REDIS_URL" and isinstance(value, SecretStr):
        url = urlsplit(value.get_secret_value())
        credentials, _, location = url.netloc.rpartition("@")
        return f"{url.scheme}://{_HIDDEN + '@' if credentials else ''}{location}{url.path}"
    if isinstance(value, dict):  # CLIENTS: the names alone
        return ",".join(value)
    items = value if isinstance(value, list) else [value]
    if is_secret or not all(isinstance(item, _PLAIN) for item in items):
        return _HIDDEN
    return ",".join(map(str, items))
