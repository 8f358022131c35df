"""The names of the settings, as the environment has them: these and no others are read."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, SecretStr

from app.settings.fields import ApiKey, FixedCodeSetting

_SECRET_TYPES = (SecretStr, ApiKey, FixedCodeSetting)
# Plain text by their types, but the one names an account, and the other may hold a key in its path.
_ALSO_SECRET = frozenset({"PLUSOFON_USER_ID", "TRACING_ENDPOINT"})


class Setting(NamedTuple):
    """Where a setting is in the model, and whether it is secret: then logs hide it, and a file may hold it."""

    path: tuple[str, ...]
    is_secret: bool


def names_of(model: type[BaseModel]) -> Mapping[str, Setting]:
    """Return all settings of a model by name; ``PLUSOFON_USER_ID`` has the path ``("plusofon", "user_id")``."""
    return {
        (name := "_".join(path).upper()): Setting(path, name in _ALSO_SECRET or _holds_secret(annotation))
        for path, annotation in _walk(model)
    }


def _walk(model: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field, about in model.model_fields.items():
        if isinstance(about.default, BaseModel):
            yield from (((field, *path), annotation) for path, annotation in _walk(type(about.default)))
        else:
            yield (field,), about.annotation


def _holds_secret(annotation: Any) -> bool:  # noqa: ANN401 - any type annotation
    """Return whether a value of a type has a secret anywhere in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(_holds_secret(about.annotation) for about in annotation.model_fields.values())
    return annotation in _SECRET_TYPES or any(map(_holds_secret, get_args(annotation)))
