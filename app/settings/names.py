"""The names of the settings in the environment."""

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, SecretStr

from app.settings.validators import ApiKey, TestNumberSetting

_SECRET_TYPES = (SecretStr, ApiKey, TestNumberSetting)
# Plain text by type, but the one identifies an account, and the other may have a key in its path.
_ALSO_SECRET = frozenset({"PLUSOFON_USER_ID", "TRACING_ENDPOINT"})


class Setting(NamedTuple):
    """The path of a setting in the model. A secret is hidden in logs, and may be given as a file."""

    path: tuple[str, ...]
    is_secret: bool


def names_of(model: type[BaseModel], section: tuple[str, ...] = ()) -> Mapping[str, Setting]:
    """Return all settings of a model by name; ``PLUSOFON_USER_ID`` has the path ``("plusofon", "user_id")``."""
    settings: dict[str, Setting] = {}
    for field_name, field in model.model_fields.items():
        path = (*section, field_name)
        if isinstance(field.default, BaseModel):
            settings |= names_of(type(field.default), path)
        else:
            name = "_".join(path).upper()
            settings[name] = Setting(path, name in _ALSO_SECRET or _has_secret(field.annotation))
    return settings


def _has_secret(annotation: Any) -> bool:  # noqa: ANN401 - any type annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(_has_secret(field.annotation) for field in annotation.model_fields.values())
    return annotation in _SECRET_TYPES or any(map(_has_secret, get_args(annotation)))
