"""The sentence for each mistake in a setting: it has the name of the setting, and never its value."""

import re
from collections.abc import Mapping

from pydantic_core import ErrorDetails

from app.settings.environment import SettingText

Location = tuple[int | str, ...]
"""Where a value stands in the settings: fields, the place in a list, or the name of a client."""
Mistake = tuple[Location, str]
"""A location, and the message to stand after its name."""

# By pydantic's error types. The validators of this package raise a ValueError with the message.
_MESSAGES = {
    **dict.fromkeys(("int_parsing", "int_parsing_size", "int_from_float", "int_type"), "must be a whole number"),
    **dict.fromkeys(
        ("float_parsing", "float_type", "decimal_parsing", "decimal_type", "finite_number"), "must be a number"
    ),
    "decimal_max_places": "may have at most {decimal_places} decimal places",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    **dict.fromkeys(("enum", "literal_error"), "must be {expected}"),
    "ip_any_network": "must be an address or a network, such as 10.0.0.0/8",
    "path_type": "must be a file",
    "string_type": "must be text",
    "string_unicode": "must be text in UTF-8",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "may have at most {max_length} characters",
    "list_type": "must be a list",
    "too_short": "must have at least {min_length} in its list",
    "too_long": "may have at most {max_length} in its list",
    # Braces are doubled, as the messages are templates.
    **dict.fromkeys(
        ("dict_type", "model_type"), 'must be an object of JSON, such as {{"shop": {{"calls_per_day": 200}}}}'
    ),
    "extra_forbidden": "is unknown",
}


def message_for(error: ErrorDetails) -> str:
    """Return the message for an error of pydantic, to stand after the name of the setting."""
    facts = error.get("ctx", {})
    if error["type"] == "value_error":
        return str(facts["error"])
    message = _MESSAGES.get(error["type"])
    return message.format_map({name: _format(fact) for name, fact in facts.items()}) if message else error["msg"]


def name_at(location: Location) -> str:
    """Return the name of the setting that contains a location."""
    if location[0] == "clients":
        return "CLIENTS"
    return "_".join(part for part in location if isinstance(part, str)).upper()


def sentence(mistake: Mistake, given: Mapping[str, SettingText]) -> str:
    """Return a sentence with the name of a setting, as it was ``given``, and what is wrong with it."""
    location, message = mistake
    name = name_at(location)
    shown = given[name].display_name if name in given else name
    fields = [part for part in location[1:] if isinstance(part, str)]
    if name == "CLIENTS" and fields:  # a field of the JSON, or the name of a client
        shown += ": " + (".".join(fields) if fields[1:] else f'"{fields[0]}"')
    items = "".join(f" (item {part + 1})" for part in location if isinstance(part, int))
    return f"{shown}{items} {message[:1].lower()}{message[1:]}."


def _format(fact: object) -> str:
    if isinstance(fact, float) and fact.is_integer():
        return str(int(fact))
    # pydantic quotes the expected values as Python does: 'info', <Channel.VOICE: 'voice'>.
    return re.sub(r"(?:<[^:>]*: )?'([^']*)'>?", r"\1", str(fact))
