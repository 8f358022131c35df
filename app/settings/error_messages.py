"""What is wrong with a setting, as a sentence of our own words: the setting by its name, and no value."""

import re
from collections.abc import Container, Mapping
from typing import Any

from pydantic_core import ErrorDetails

_NUMBER, _WHOLE_NUMBER = "must be a number", "must be a whole number"
_OBJECT = 'must be an object of JSON, such as {{"shop": {{"calls_per_day": 200}}}}'  # a template, as all are

# By the kinds of pydantic's errors; those of validators of our own have our words already.
_WORDS = {
    "int_parsing": _WHOLE_NUMBER,
    "int_parsing_size": _WHOLE_NUMBER,
    "int_from_float": _WHOLE_NUMBER,
    "int_type": _WHOLE_NUMBER,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "decimal_parsing": _NUMBER,
    "decimal_type": _NUMBER,
    "finite_number": _NUMBER,
    "decimal_max_places": "may have at most {decimal_places} decimal places",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "enum": "must be {expected}",
    "literal_error": "must be {expected}",
    "ip_any_network": "must be an address or a network, such as 10.0.0.0/8",
    "path_type": "must be a file",
    "string_type": "must be text",
    "string_unicode": "must be text in UTF-8",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "may have at most {max_length} characters",
    "list_type": "must be a list",
    "too_short": "must have at least {min_length} in its list",
    "too_long": "may have at most {max_length} in its list",
    "dict_type": _OBJECT,
    "model_type": _OBJECT,
    "extra_forbidden": "is unknown",
}


def in_words(found: ErrorDetails) -> str:
    """Say what pydantic found; the name of the setting goes before it."""
    words = _WORDS.get(found["type"])
    return words.format_map({name: _written(fact) for name, fact in _facts(found).items()}) if words else found["msg"]


def name_in(location: tuple[int | str, ...], names: Container[str]) -> str:
    """Return the name of the setting that a location lies in; empty where it is in none."""
    parts = [str(part).upper() for part in location]
    ends = ("_".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((name for name in ends if name in names), "")


def sentence(location: tuple[int | str, ...], message: str, display_name: Mapping[str, str]) -> str:
    """Name a setting and say what is wrong with it.

    ``display_name`` has the names of settings that are not told as the environment names them: where they were found.
    """
    names = [part for part in location if isinstance(part, str)]
    items = "".join(f" (item {part + 1})" for part in location if isinstance(part, int))
    if names[0] == "clients" and len(names) > 1:  # a field of its JSON, or a client's name
        name = f"{display_name.get('CLIENTS', 'CLIENTS')}: " + (".".join(names[1:]) if names[2:] else f'"{names[1]}"')
    else:
        name = "_".join(names).upper()
        name = display_name.get(name, name)
    return f"{name}{items} {message[:1].lower()}{message[1:]}."


def _facts(found: ErrorDetails) -> Mapping[str, Any]:
    return found.get("ctx", {})


def _written(fact: object) -> str:
    if isinstance(fact, float) and fact.is_integer():
        return str(int(fact))
    # The values that a setting may have come as Python writes them: 'info', <Channel.VOICE: 'voice'>.
    return re.sub(r"(?:<[^:>]*: )?'([^']*)'>?", r"\1", str(fact))
