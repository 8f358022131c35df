"""Names that look like settings and are none: a limit whose name is misspelt does not hold."""

import os
from collections.abc import Iterator
from difflib import get_close_matches

from pydantic import BaseModel
from pydantic_settings import DotEnvSettingsSource

from app.settings.settings import Settings

_OF_COMPOSE = {"redis_password"}  # stands in .env for docker-compose.yml, and begins as a setting does
# The environment is everybody's: there, a name of which nobody else would think, or nearly that of a setting.
_OURS_ALONE = ("plusofon_", "limit_calls_", "limit_failed_")
_OF_KUBERNETES = "plusofon_verify_"  # which tells every container of a service of this name
_SHORT = 12  # characters: until then another program's name may be as near
_NEAR = 0.9  # of 1, which is the same


def unknown_settings() -> dict[str, str]:
    """Find the names in ``.env`` and the environment that look like settings and are none.

    Each comes with the setting that is probably meant, or with nothing.
    """
    known = list(_names(Settings, ""))
    in_file = set(DotEnvSettingsSource(Settings, env_ignore_empty=False).env_vars)
    found = {}
    for name in sorted({*in_file, *map(str.lower, os.environ)}.difference(known, _OF_COMPOSE)):
        meant = next(iter(get_close_matches(name, known, n=1, cutoff=_NEAR)), "")
        if _is_meant_in_file(name, meant) if name in in_file else _is_meant_in_environment(name, meant):
            found[name.upper()] = meant.upper()
    return found


def _is_meant_in_file(name: str, meant: str) -> bool:
    sections = (field for field, about in Settings.model_fields.items() if isinstance(about.default, BaseModel))
    return bool(meant) or name.startswith(tuple(f"{section}_" for section in sections))


def _is_meant_in_environment(name: str, meant: str) -> bool:
    if name.startswith(_OF_KUBERNETES):
        return False
    return name.startswith(_OURS_ALONE) or len(meant) >= _SHORT


def _names(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """Walk the names of all settings, in small letters."""
    for field, about in section.model_fields.items():
        if isinstance(about.default, BaseModel):
            yield from _names(type(about.default), f"{prefix}{field}_")
        else:
            yield f"{prefix}{field}"
