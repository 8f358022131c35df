"""`.env.example` lists every setting of the code once, with its default."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from app.settings import Settings, load_settings, setting_names
from app.tokens import generate_keys

EXAMPLE = Path(__file__).parents[2] / ".env.example"
LINE = re.compile(r"(?P<off>#?)(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>.*)")

# Read by docker-compose.yml, not by the service.
ONLY_COMPOSE = {"REDIS_PASSWORD", "SITE", "ACME_EMAIL", "GRAFANA_PASSWORD", "RUNBOOKS_URL"}
# Settings that production requires; the values are made up.
REQUIRED = {
    "PLUSOFON_USER_ID": "0",
    "PLUSOFON_ACCESS_TOKEN": "not-a-real-token",
    "SECRET_KEY": "not-a-real-secret-0123456789-0123456789",
    "API_KEYS": f"shop:{'0' * 64}",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "TOKEN_KEYS": generate_keys(),
}


def defaults(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the environment variable of each setting and its default, written as in the environment."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from defaults(type(field.default), f"{name}_")
        else:
            yield f"{prefix}{name}".upper(), as_text(field.default)


def files() -> list[str]:
    return [f"{name}_FILE" for name, setting in setting_names().items() if setting.is_secret]


def as_text(value: object) -> str:
    match value:
        case None:
            return ""
        case list():
            return ",".join(map(str, value))
        case SecretStr():
            return value.get_secret_value()
        case _:
            return str(value)


def lines() -> list[str]:
    return EXAMPLE.read_text(encoding="utf-8").splitlines()


def found() -> list[re.Match[str]]:
    return [match for match in map(LINE.fullmatch, lines()) if match]


def test_every_setting_is_listed_once_and_nothing_else() -> None:
    assert sorted(match["name"] for match in found()) == sorted([*dict(defaults()), *files(), *ONLY_COMPOSE])


def test_commented_lines_show_the_defaults() -> None:
    shown = {match["name"]: match["value"] for match in found() if match["off"]}
    settings = {name: value for name, value in defaults() if name not in REQUIRED}
    assert shown == {**settings, **dict.fromkeys(files(), "")}


def test_required_settings_are_empty_and_not_commented_out() -> None:
    assert {match["name"]: match["value"] for match in found() if not match["off"]} == dict.fromkeys(
        [*REQUIRED, *ONLY_COMPOSE], ""
    )


def test_every_setting_has_an_explaining_comment() -> None:
    text = lines()
    for match in found():
        place = text.index(match[0]) - 1
        while text[place].removeprefix("#").removesuffix("=") in files():  # one comment line stands for all of them
            place -= 1
        assert text[place].startswith("# "), match["name"]


def test_with_required_values_production_starts_and_uncommenting_the_rest_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The names and the spelling of the values are those that the settings read."""
    monkeypatch.chdir(tmp_path)  # where .env is looked for
    for name, _ in defaults():
        monkeypatch.delenv(name, raising=False)
    env = tmp_path / ".env"

    env.write_text("\n".join(f"{name}={value}" for name, value in REQUIRED.items()), encoding="utf-8")
    plain = load_settings()
    filled = {match["name"]: match["value"] or REQUIRED.get(match["name"], "") for match in found()}
    env.write_text("\n".join(f"{name}={value}" for name, value in filled.items()), encoding="utf-8")

    assert load_settings() == plain
