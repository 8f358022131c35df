"""Error messages of settings: plain sentences with the name of the environment variable, none of pydantic's texts."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from app.settings import Settings, SettingsError, load_settings
from app.settings.clients import ClientSettings
from tests.unit.test_settings import PRODUCTION

ODD = ("~", "-1", "1.5", "99999999999", "1" * 5000, "nan", "0.00001", "\u2116 x", "x" * 3000, "/", "[]", "~,~")
ODD_IN_JSON: tuple[object, ...] = (*ODD, -1, 1.5, None, True, [], ["~", 1], {"a": 1}, "")
PYDANTICS = ("nput", "string", "pattern", "valid", "Value error", "<", "^", "list[", "Decimal")


@pytest.fixture(autouse=True)
def _sandbox_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where .env is looked for
    monkeypatch.setenv("MODE", "sandbox")


def mistakes(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[str]:
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            load_settings()
        except SettingsError as error:
            return error.sentences
    return []


def names(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    for field, about in section.model_fields.items():
        if isinstance(about.default, BaseModel):
            yield from names(type(about.default), f"{prefix}{field}_")
        elif field != "clients":
            yield f"{prefix}{field}".upper()


@pytest.mark.parametrize("name", list(names()))
def test_no_error_message_of_a_setting_contains_pydantic_text(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for value in ODD:
        for sentence in mistakes(monkeypatch, **{name: value}):
            assert not [word for word in PYDANTICS if word in sentence], sentence
            assert len(value) < 4 or value not in sentence


@pytest.mark.parametrize("field", list(ClientSettings.model_fields))
def test_no_error_message_of_a_client_setting_contains_pydantic_text(
    monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    sentences = [
        sentence
        for value in ODD_IN_JSON
        for sentence in mistakes(monkeypatch, CLIENTS=json.dumps({"sandbox": {field: value}}))
    ]

    assert sentences
    for sentence in sentences:
        assert sentence.startswith("CLIENTS: sandbox.")
        assert not [word for word in PYDANTICS if word in sentence], sentence


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PORT", "http", "PORT must be a whole number."),
        ("PORT", "65536", "PORT must be at most 65535."),
        ("LIMIT_CALLS_PER_DAY", "0", "LIMIT_CALLS_PER_DAY must be at least 1."),
        ("REDIS_TIMEOUT_SECONDS", "0", "REDIS_TIMEOUT_SECONDS must be more than 0."),
        ("LOG_LEVEL", "loud", "LOG_LEVEL must be debug, info, warning or error."),
        ("RELAY_CHANNELS", "sms", "RELAY_CHANNELS (item 1) must be voice or flash_call."),
        ("GUARD_ENABLED", "perhaps", "GUARD_ENABLED must be true or false."),
        ("PROXY_ADDRESSES", "*", "PROXY_ADDRESSES (item 1) must be an address or a network, such as 10.0.0.0/8."),
        ("CLIENTS", "[]", 'CLIENTS must be an object of JSON, such as {"shop": {"calls_per_day": 200}}.'),
        ("CLIENTS", '{"sandbox": {"call_per_day": 1}}', "CLIENTS: sandbox.call_per_day is unknown."),
        (
            "PUBLIC_URL",
            "https://me@verify.example/path?query",
            (
                "PUBLIC_URL must be https://host or https://host/path, without a user name; the path of letters, digits"
                " and . _ ~ -."
            ),
        ),
        (
            "RELAY_URL",
            "127.0.0.1:8080",
            (
                "RELAY_URL must be https://host/path, or http:// on localhost in sandbox mode; without a user name and"
                " a query."
            ),
        ),
    ],
)
def test_an_invalid_value_has_its_own_error_message(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    assert mistakes(monkeypatch, **{name: value}) == [sentence]


def test_a_trailing_slash_of_a_base_url_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**PRODUCTION, "MODE": "production"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PUBLIC_URL", "https://verify.example/")
    monkeypatch.setenv("PLUSOFON_BASE_URL", "https://restapi.example/")

    settings = load_settings()

    assert settings.public_url == "https://verify.example"
    assert settings.plusofon.base_url == "https://restapi.example"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, 'CLIENTS: "nobody" is nobody: without API_KEYS every caller is "sandbox".'),
        ({"API_KEYS": PRODUCTION["API_KEYS"]}, 'CLIENTS: "nobody" has no key in API_KEYS.'),
        ({**PRODUCTION, "MODE": "production"}, 'CLIENTS: "nobody" has no key in API_KEYS.'),
    ],
    ids=["sandbox", "sandbox with keys", "production"],
)
def test_settings_of_a_client_without_an_api_key_are_rejected(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sentence: str
) -> None:
    assert mistakes(monkeypatch, **environment, CLIENTS='{"nobody": {"calls_per_day": 5}}') == [sentence]


def test_without_api_keys_the_sandbox_client_can_have_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert mistakes(monkeypatch, CLIENTS='{"sandbox": {"calls_per_day": 5}}') == []
