"""Reads the settings' text: from the environment, from ``.env``, and from files that ``NAME_FILE`` names."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from app.settings.names import Setting

DOTENV = Path(".env")
_MAX_BYTES = 1 << 20
_QUOTES = "cannot be read: put a value with quotes in it, as JSON has, in 'single quotes'"


@dataclass(frozen=True, slots=True)
class SettingText:
    """A setting's text, and its name for error messages, such as ``SECRET_KEY_FILE`` or ``CLIENTS (.env, line 3)``."""

    text: str
    display_name: str


@dataclass(frozen=True, slots=True)
class Environment:
    """The texts of settings by name, and what could not be read.

    ``unreadable`` has the names for which something was given that could not be read, each with a sentence.
    ``mistakes`` has the sentences that belong to no setting.
    """

    values: Mapping[str, SettingText] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)


def read_environment(settings: Mapping[str, Setting]) -> Environment:
    """Read the text of each setting. An empty text means that the setting is not given.

    The environment comes before ``.env``, also where it is empty: that means the default. Names count in any case, but
    ``PORT`` comes before ``port``, which may be another program's.
    """
    in_file = read_dotenv()
    exact_last = sorted(os.environ.items(), key=lambda variable: variable[0].isupper())
    everything = {**in_file.values, **{name.upper(): SettingText(text, name.upper()) for name, text in exact_last}}
    given: dict[str, SettingText] = {}
    unreadable = dict(in_file.unreadable)
    for name, setting in settings.items():
        try:
            if found := _find(name, everything, may_be_in_file=setting.is_secret):
                given[name] = found
        except ValueError as error:
            unreadable[name] = str(error)
    return Environment(given, {name: unreadable[name] for name in unreadable if name not in given}, in_file.mistakes)


class EnvironmentSource(PydanticBaseSettingsSource):
    """The source of pydantic-settings that reads the named settings, and nothing else, by ``read_environment``."""

    def __init__(self, settings_cls: type[BaseSettings], names: Mapping[str, Setting]) -> None:
        super().__init__(settings_cls)
        self._data: dict[str, Any] = {}
        for name, given in read_environment(names).values.items():
            *section, field_name = names[name].path
            (self._data.setdefault(section[0], {}) if section else self._data)[field_name] = given.text

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - the library's
        """Return the text of a setting, or the texts of a section."""
        return self._data.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return all that is given."""
        return self._data


def _find(name: str, everything: Mapping[str, SettingText], *, may_be_in_file: bool) -> SettingText | None:
    """Return what is given for a setting. Raises ValueError with a sentence."""
    given, file = everything.get(name), everything.get(f"{name}_FILE") if may_be_in_file else None
    if given and re.search("[\ud800-\udfff]", given.text):  # how Python keeps bytes that are not in UTF-8
        raise ValueError(f"{given.display_name} must be text in UTF-8.")
    if not file or not file.text:
        return given if given and given.text else None
    if given and given.text:
        raise ValueError(f"{file.display_name} must be left out where {name} is given.")
    try:
        # A line feed is what an editor, echo and kubectl add.
        text = _read_text(Path(file.text)).rstrip("\r\n")
    except UnicodeDecodeError:
        text = "\0"
    except ValueError as error:
        raise ValueError(f"{file.display_name} {error}.") from None
    if "\0" in text:
        raise ValueError(f"{file.display_name} must hold text in UTF-8.")
    if not text.strip():
        raise ValueError(f"{file.display_name} names an empty file.")
    return SettingText(text, file.display_name)


def read_dotenv() -> Environment:
    """Read ``.env``, by the names that stand there; where there is no such file, nothing is given."""
    if not os.path.lexists(DOTENV):
        return Environment()
    try:
        text = _read_text(DOTENV)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        if error.object.startswith((b"\xff\xfe", b"\xfe\xff")):
            return Environment(mistakes=[".env is in UTF-16; save it in UTF-8."])
        return Environment(mistakes=[f".env, line {line} is not in UTF-8; save the file in UTF-8."])
    except ValueError as error:
        return Environment(mistakes=[f".env {error}."])
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        return Environment(mistakes=[f".env, line {line} has a NUL character; save the file as text in UTF-8."])
    return _parse(text)


def _parse(text: str) -> Environment:
    """Parse what ``.env`` holds. The library would only warn of a line that it cannot read, and leave it out."""
    lines: dict[str, int] = {}
    readable: list[str] = []
    unreadable: dict[str, str] = {}
    mistakes: list[str] = []
    for binding in parse_stream(StringIO(text)):
        original = binding.original.string
        # The library counts from the end of what it read before, blank lines included.
        line = binding.original.line + original[: len(original) - len(original.lstrip())].count("\n")
        if not (binding.key or "").isascii():  # an invisible character, or a letter of another alphabet
            mistakes.append(f".env, line {line} has a name with a character that is not ASCII.")
        elif not binding.error:
            readable.append(original)
            lines[(binding.key or "").upper()] = line
        elif named := re.match(r"\s*(?:export\s+)?([A-Za-z0-9_]+)\s*=", original):
            name = named[1].upper()
            unreadable[name] = f"{name} (.env, line {line}) {_QUOTES}."
        else:
            mistakes.append(f".env, line {line} must be NAME=value.")
    given = {}
    for key, value in dotenv_values(stream=StringIO("".join(readable))).items():
        name = key.upper()
        # JSON is where quotes go wrong, and the line is what one looks for then.
        display_name = f"{name} (.env, line {lines[name]})" if "{" in (value or "") else name
        given[name] = SettingText(value or "", display_name)
    return Environment(given, unreadable, mistakes)


def _read_text(path: Path) -> str:
    """Read a small regular file. Raises ValueError: why it cannot be read; UnicodeDecodeError: it is not in UTF-8."""
    try:
        if path.is_fifo():  # it could be read only once, and would keep everybody waiting
            raise ValueError("must be a regular file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(content) == _MAX_BYTES:
        raise ValueError("must hold less than 1 MiB")
    return content.decode("utf-8-sig")
