"""Finds misspelt names of settings, which would otherwise be ignored without a word."""

import os
import re
from difflib import get_close_matches

from app.settings.environment import read_dotenv
from app.settings.settings import setting_names

_OF_COMPOSE = {"REDIS_PASSWORD"}  # in .env for docker-compose.yml, with the prefix of a section
# Prefixes that no other program uses. Others would be found in the environment of many machines.
_OWN_PREFIXES = ("PLUSOFON_", "LIMIT_CALLS_", "LIMIT_FAILED_")
# Kubernetes sets these for each service in each container; a service may be called plusofon-verify, or plusofon.
_OF_KUBERNETES = re.compile(r"^PLUSOFON_VERIFY_|_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT(_[0-9]+_(TCP|UDP|SCTP).*)?$")
_MIN_LENGTH = 12  # shorter names resemble those of other programs
_MIN_SIMILARITY = 0.9  # of 1.0


def misspelt_settings() -> dict[str, str]:
    """Return the names in ``.env`` and the environment that look like settings but are unknown.

    The value is the name that was probably meant, or an empty string.
    """
    settings = setting_names()
    known = [*settings, *(f"{name}_FILE" for name, setting in settings.items() if setting.is_secret)]
    beginnings = tuple(f"{name.partition('_')[0]}_" for name in settings if "_" in name)
    in_file = read_dotenv().values
    found = {}
    for name in sorted({*in_file, *map(str.upper, os.environ)}.difference(known, _OF_COMPOSE)):
        meant = next(iter(get_close_matches(name, known, n=1, cutoff=_MIN_SIMILARITY)), "")
        if name in in_file:
            is_misspelt = bool(meant) or name.startswith(beginnings)
        else:
            looks_like_one = name.startswith(_OWN_PREFIXES) or len(meant) >= _MIN_LENGTH
            is_misspelt = looks_like_one and not _OF_KUBERNETES.search(name)
        if is_misspelt:
            found[name] = meant
    return found
