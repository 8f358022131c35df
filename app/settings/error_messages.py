"""The sentence for each mistake in a setting: it has the name of the setting, and never its value."""

import re
from collections.abc import Container, Mapping

from pydantic_core import ErrorDetails

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


def setting_at(location: tuple[int | str, ...], names: Container[str]) -> str:
    """Return the name of the setting that contains a location, or an empty string."""
    parts = [str(part).upper() for part in location]
    prefixes = ("_".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((prefix for prefix in prefixes if prefix in names), "")


def sentence(location: tuple[int | str, ...], message: str, display_names: Mapping[str, str]) -> str:
    """Return a sentence with the name of the setting at a location, as ``display_names`` shows it, and a message."""
    fields = [part for part in location if isinstance(part, str)]
    items = "".join(f" (item {part + 1})" for part in location if isinstance(part, int))
    if fields[0] == "clients" and len(fields) > 1:  # a field of the JSON, or the name of a client
        name = f"{display_names.get('CLIENTS', 'CLIENTS')}: "
        name += ".".join(fields[1:]) if fields[2:] else f'"{fields[1]}"'
    else:
        name = "_".join(fields).upper()
        name = display_names.get(name, name)
    return f"{name}{items} {message[:1].lower()}{message[1:]}."


def _format(fact: object) -> str:
    if isinstance(fact, float) and fact.is_integer():
        return str(int(fact))
    # pydantic quotes the expected values as Python does: 'info', <Channel.VOICE: 'voice'>.
    return re.sub(r"(?:<[^:>]*: )?'([^']*)'>?", r"\1", str(fact))
