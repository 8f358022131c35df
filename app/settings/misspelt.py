"""Names that look like settings and are none: a limit whose name is misspelt does not hold."""

import os
import re
from difflib import get_close_matches

from app.settings.environment import read_dotenv
from app.settings.settings import setting_names

_OF_COMPOSE = {"REDIS_PASSWORD"}  # stands in .env for docker-compose.yml, and begins as a setting does
# The environment is everybody's: there, a name of which nobody else would think, or nearly that of a setting.
_OURS_ALONE = ("PLUSOFON_", "LIMIT_CALLS_", "LIMIT_FAILED_")
# Kubernetes tells every container of each service; one may be called plusofon-verify, or plusofon.
_OF_KUBERNETES = re.compile(r"^PLUSOFON_VERIFY_|_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT(_[0-9]+_(TCP|UDP|SCTP).*)?$")
_SHORT = 12  # characters: until then another program's name may be as near
_NEAR = 0.9  # of 1, which is the same


def misspelt_settings() -> dict[str, str]:
    """Find the names in ``.env`` and the environment that look like settings and are none.

    Each comes with the setting that is probably meant, or with nothing.
    """
    settings = setting_names()
    known = [*settings, *(f"{name}_FILE" for name, setting in settings.items() if setting.is_secret)]
    sections = tuple(f"{setting.path[0].upper()}_" for setting in settings.values() if setting.path[1:])
    in_file = read_dotenv().values
    found = {}
    for name in sorted({*in_file, *map(str.upper, os.environ)}.difference(known, _OF_COMPOSE)):
        meant = next(iter(get_close_matches(name, known, n=1, cutoff=_NEAR)), "")
        if bool(meant) or name.startswith(sections) if name in in_file else _is_meant_in_environment(name, meant):
            found[name] = meant
    return found


def _is_meant_in_environment(name: str, meant: str) -> bool:
    if _OF_KUBERNETES.search(name):
        return False
    return name.startswith(_OURS_ALONE) or len(meant) >= _SHORT
