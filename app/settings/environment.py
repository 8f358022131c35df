"""The names of settings in the environment, and their text: from there, ``.env``, or the files of ``NAME_FILE``."""

import os
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, get_args

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import BaseModel, SecretStr

from app.settings.validators import ApiKey
from app.settings_error import SettingsError
from app.verification.phone import Phone

DOTENV = Path(".env")
_SECRET_TYPES = (SecretStr, ApiKey, Phone)
# Plain text by type, but the one identifies an account, and the other may have a key in its path.
_ALSO_SECRET = frozenset({"PLUSOFON_USER_ID", "TRACING_ENDPOINT"})
_MAX_BYTES = 1 << 20
_QUOTES = "cannot be read: put a value with quotes in it, as JSON has, in 'single quotes'"


class Setting(NamedTuple):
    """The path of a setting in the model. A secret is hidden in logs, and may be given as a file."""

    path: tuple[str, ...]
    is_secret: bool


class SettingText(NamedTuple):
    """A setting's text, and its name for error messages, such as ``SECRET_KEY_FILE`` or ``CLIENTS (.env, line 3)``."""

    text: str
    display_name: str


class Environment(NamedTuple):
    """The texts of settings by name, and a sentence for each setting that could not be read, by its name."""

    values: Mapping[str, SettingText]
    unreadable: Mapping[str, str]


def names_of(model: type[BaseModel], section: tuple[str, ...] = ()) -> Mapping[str, Setting]:
    """Return all settings of a model by name; ``PLUSOFON_USER_ID`` has the path ``("plusofon", "user_id")``."""
    settings: dict[str, Setting] = {}
    for field_name, info in model.model_fields.items():
        path = (*section, field_name)
        if isinstance(info.default, BaseModel):
            settings |= names_of(type(info.default), path)
        else:
            name = "_".join(path).upper()
            settings[name] = Setting(path, name in _ALSO_SECRET or _has_secret(info.annotation))
    return settings


def _has_secret(annotation: Any) -> bool:  # noqa: ANN401 - any type annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(_has_secret(info.annotation) for info in annotation.model_fields.values())
    return annotation in _SECRET_TYPES or any(map(_has_secret, get_args(annotation)))


def read_environment(settings: Mapping[str, Setting]) -> Environment:
    """Return the text of each setting that is given. An empty text stands for the default.

    The environment takes precedence over ``.env``, also with an empty text. Names are case-insensitive, but ``PORT``
    takes precedence over ``port``, which may belong to another program. Raise SettingsError as ``read_dotenv``.
    """
    in_file = read_dotenv()
    exact_last = sorted(os.environ.items(), key=lambda variable: variable[0].isupper())
    texts = {**in_file.values, **{name.upper(): SettingText(text, name.upper()) for name, text in exact_last}}
    given: dict[str, SettingText] = {}
    unreadable = dict(in_file.unreadable)
    for name, setting in settings.items():
        try:
            if found := _find(name, texts, may_be_in_file=setting.is_secret):
                given[name] = found
        except ValueError as error:
            unreadable[name] = str(error)
    return Environment(given, {name: unreadable[name] for name in unreadable if name not in given})


def _find(name: str, texts: Mapping[str, SettingText], *, may_be_in_file: bool) -> SettingText | None:
    """Return what is given for a setting. Raise ValueError with a sentence."""
    given, file = texts.get(name), texts.get(f"{name}_FILE") if may_be_in_file else None
    if given and re.search("[\ud800-\udfff]", given.text):  # how Python represents bytes that are not UTF-8
        raise ValueError(f"{given.display_name} must be text in UTF-8.")
    if not file or not file.text:
        return given if given and given.text else None
    if given and given.text:
        raise ValueError(f"{file.display_name} must be left out where {name} is given.")
    try:
        # Editors, echo and kubectl add a line feed.
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
    """Return what ``.env`` has, under any name; without such a file, nothing.

    Raise SettingsError if a part belongs to no setting: those that seem missing may be there.
    """
    if not os.path.lexists(DOTENV):
        return Environment({}, {})
    try:
        text = _read_text(DOTENV)
    except UnicodeDecodeError as error:
        if error.object.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise SettingsError([".env is in UTF-16; save it in UTF-8."]) from None
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SettingsError([f".env, line {line} is not in UTF-8; save the file in UTF-8."]) from None
    except ValueError as error:
        raise SettingsError([f".env {error}."]) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SettingsError([f".env, line {line} has a NUL character; save the file as text in UTF-8."])
    return _parse(text)


def _parse(text: str) -> Environment:
    """Parse the text of ``.env``. python-dotenv alone would skip a line that it cannot read, with a warning."""
    lines: dict[str, int] = {}
    readable: list[str] = []
    unreadable: dict[str, str] = {}
    mistakes: list[str] = []
    for binding in parse_stream(StringIO(text)):
        original = binding.original.string
        # The library's line is that of the blank lines before a binding.
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
    if mistakes:
        raise SettingsError(mistakes)
    given = {}
    for key, value in dotenv_values(stream=StringIO("".join(readable))).items():
        name = key.upper()
        # The line helps to find mistakes in the quotes of JSON.
        display_name = f"{name} (.env, line {lines[name]})" if "{" in (value or "") else name
        given[name] = SettingText(value or "", display_name)
    return Environment(given, unreadable)


def _read_text(path: Path) -> str:
    """Return the text of a small regular file. Raise ValueError with a reason, or UnicodeDecodeError."""
    try:
        if path.is_fifo():  # it could be read only once, and reading would block
            raise ValueError("must be a regular file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(content) == _MAX_BYTES:
        raise ValueError("must hold less than 1 MiB")
    return content.decode("utf-8-sig")
