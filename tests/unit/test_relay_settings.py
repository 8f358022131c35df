"""Relay settings: none is required without a relay channel, and URL and secret are required with one."""

import pytest

from app.settings import SettingsError, load_settings
from app.settings.policies import make_policies
from app.tokens import generate_keys
from app.verification.channels import Channel

SECRET = "whsec_bm90IGEgcmVhbCBzZWNyZXQsIGZvciB0ZXN0cw=="
PRODUCTION = {
    "PLUSOFON_USER_ID": "0",
    "PLUSOFON_ACCESS_TOKEN": "not-a-real-token",
    "SECRET_KEY": "not-a-real-secret-0123456789-0123456789",
    "API_KEYS": f"shop:{'0' * 64}",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "TOKEN_KEYS": generate_keys(),
}
RELAY = {"RELAY_CHANNELS": "voice", "RELAY_URL": "https://calls.example/not-real", "RELAY_SECRET": SECRET}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    for name in ("MODE", *RELAY):
        monkeypatch.delenv(name, raising=False)
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)


def mistakes(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[str]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return caught.value.sentences


def test_no_channel_uses_a_relay_by_default() -> None:
    assert load_settings().relay.channels == []


def test_relay_channels_are_a_comma_separated_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**RELAY, "RELAY_CHANNELS": "voice, flash_call"}.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.relay.channels == [Channel.VOICE, Channel.FLASH_CALL]
    assert SECRET not in repr(settings)
    assert "not-real" not in repr(settings.relay)


def test_url_and_secret_are_required_once_a_channel_uses_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mistakes(monkeypatch, RELAY_CHANNELS="flash_call")
    assert [sentence.split()[0] for sentence in found] == ["RELAY_SECRET", "RELAY_URL"]
    assert all("is missing" in sentence for sentence in found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RELAY_CHANNELS", "reverse_call"),
        ("RELAY_CHANNELS", "sms"),
        ("RELAY_URL", "http://calls.example/not-real"),
        ("RELAY_URL", "calls.example/not-real"),
        ("RELAY_URL", "https://user:not-real@calls.example"),
        ("RELAY_URL", "https://calls.example/?key=not-real"),
        ("RELAY_URL", "https://calls.example/#not-real"),
        ("RELAY_SECRET", "whsec_not-real"),
        ("RELAY_SECRET", SECRET.removeprefix("whsec_")),
        ("RELAY_SECRET", "whsec_bm90LXJlYWw="),
        ("RELAY_TIMEOUT_SECONDS", "3"),
        ("RELAY_CONNECT_TIMEOUT_SECONDS", "0"),
    ],
)
def test_an_invalid_setting_is_reported_by_name_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    (sentence,) = mistakes(monkeypatch, **{**RELAY, name: value})
    assert sentence.startswith(name)
    assert "not-real" not in sentence
    assert SECRET.removeprefix("whsec_") not in sentence


@pytest.mark.parametrize("url", ["http://localhost:8080/verify", "http://127.0.0.1", "https://[::1]:1/"])
def test_the_sandbox_accepts_a_relay_on_localhost(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in {**RELAY, "RELAY_URL": url, "MODE": "sandbox"}.items():
        monkeypatch.setenv(name, value)
    assert load_settings().relay.url


@pytest.mark.parametrize("url", ["https://calls.example", "http://localhost.example/", "http://127.0.0.1.example"])
def test_the_sandbox_rejects_a_relay_elsewhere(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    (sentence,) = mistakes(monkeypatch, **{**RELAY, "RELAY_URL": url, "MODE": "sandbox"})
    assert sentence.startswith("RELAY_URL must be on localhost")


def test_the_relay_timeout_is_part_of_the_longest_request(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_settings().longest_request
    for name, value in {**RELAY, "RELAY_TIMEOUT_SECONDS": "20"}.items():
        monkeypatch.setenv(name, value)
    assert (load_settings().longest_request - before).total_seconds() == 10
    assert make_policies(load_settings()).default.call_timeout.total_seconds() == 20
