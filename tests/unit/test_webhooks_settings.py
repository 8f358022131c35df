"""Webhook settings of a client: one sentence per mistake, and no secret in an error message."""

import json

import pytest

from app.settings import Mode, Settings, SettingsError, load_settings
from app.settings.clients import make_endpoints
from app.tokens import generate_keys
from app.verification.webhooks import EventType
from app.webhooks.endpoint import WebhookEndpoint

SECRET = "whsec_bm90LWEtcmVhbC1zZWNyZXQtMDEyMzQ1"
OTHER = "whsec_bm90LWEtcmVhbC1zZWNyZXQtNTQzMjEw"
URL = "https://shop.example/hooks/phone"
PRODUCTION: dict[str, object] = {
    "mode": Mode.PRODUCTION,
    "plusofon": {"user_id": "0", "access_token": "not-a-real-token"},
    "secret": {"key": "not-a-real-secret-0123456789-0123456789"},
    "api": {"keys": f"shop:{'0' * 64}"},
    "redis": {"url": "redis://127.0.0.1:6379/0"},
    "token": {"keys": generate_keys()},
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))


def load(monkeypatch: pytest.MonkeyPatch, shop: dict[str, object], **overrides: object) -> Settings:
    monkeypatch.setenv("CLIENTS", json.dumps({"shop": shop}))
    return load_settings(**{**PRODUCTION, **overrides})


def mistakes(monkeypatch: pytest.MonkeyPatch, shop: dict[str, object]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, shop)
    return caught.value.sentences


def test_a_client_without_a_webhook_has_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_endpoints(load(monkeypatch, {"calls_per_day": 5}).clients) == {}


def test_url_and_secret_configure_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoints = make_endpoints(load(monkeypatch, {"webhook_url": URL, "webhook_secret": SECRET}).clients)

    assert endpoints == {"shop": WebhookEndpoint(URL, (b"not-a-real-secret-012345",))}


def test_several_secrets_selected_events_and_the_full_phone_are_configurable(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = {
        "webhook_url": URL,
        "webhook_secret": [SECRET, OTHER],
        "webhook_events": ["verification.verified", "verification.locked"],
        "webhook_full_phone": True,
    }

    endpoint = make_endpoints(load(monkeypatch, shop).clients)["shop"]
    assert endpoint.secrets == (b"not-a-real-secret-012345", b"not-a-real-secret-543210")
    assert endpoint.events == frozenset[str]({EventType.VERIFIED, EventType.LOCKED})
    assert endpoint.full_phone


@pytest.mark.parametrize(
    ("shop", "sentence"),
    [
        ({"webhook_url": URL}, "CLIENTS: shop.webhook_secret is missing"),
        ({"webhook_secret": SECRET}, "CLIENTS: shop.webhook_url is missing, beside webhook_secret"),
        ({"webhook_events": ["verification.locked"]}, "CLIENTS: shop.webhook_url is missing"),
        ({"webhook_url": URL, "webhook_secret": []}, "CLIENTS: shop.webhook_secret is missing"),
        ({"webhook_url": URL, "webhook_secret": "too-short"}, "CLIENTS: shop.webhook_secret (item 1) must be whsec_"),
        (
            {"webhook_url": URL, "webhook_secret": [SECRET, "too-short"]},
            "CLIENTS: shop.webhook_secret (item 2) must be",
        ),
        ({"webhook_url": URL, "webhook_secret": [SECRET] * 6}, "CLIENTS: shop.webhook_secret "),
        ({"webhook_url": URL, "webhook_secret": 7}, "CLIENTS: shop.webhook_secret "),
        ({"webhook_url": "shop.example", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must be a URL"),
        ({"webhook_url": "https://", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must be a URL"),
        ({"webhook_url": "https://[::1", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must be a URL"),
        ({"webhook_url": "https://a b/", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must be a URL"),
        ({"webhook_url": "https://a:x/", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must be a URL"),
        ({"webhook_url": "ftp://shop.example/", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must be a URL"),
        ({"webhook_url": "https://u:p@shop.example/", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must have"),
        ({"webhook_url": f"{URL}#x", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must have"),
        (
            {"webhook_url": "http://shop.example/", "webhook_secret": SECRET},
            "CLIENTS: shop.webhook_url must begin with",
        ),
        ({"webhook_url": "https://localhost/", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must not lead"),
        ({"webhook_url": "https://10.0.0.1/", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must not lead"),
        ({"webhook_url": "https://[::1]:8443/", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must not lead"),
        ({"webhook_url": "https://2130706433/", "webhook_secret": SECRET}, "CLIENTS: shop.webhook_url must not lead"),
        ({"webhook_url": URL, "webhook_secret": SECRET, "webhook_events": ["call"]}, "CLIENTS: shop.webhook_events "),
        ({"webhook_url": URL, "webhook_secret": SECRET, "webhook_events": []}, "CLIENTS: shop.webhook_events "),
        ({"webhook_uri": URL}, "CLIENTS: shop.webhook_uri "),
    ],
)
def test_an_invalid_webhook_setting_is_reported_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, shop: dict[str, object], sentence: str
) -> None:
    (found,) = mistakes(monkeypatch, shop)

    assert found.startswith(sentence)
    assert found.endswith(".")
    for secret in ("too-short", SECRET, "u:p"):
        assert secret not in found


def test_the_sandbox_allows_localhost_and_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    shop: dict[str, object] = {"webhook_url": "http://127.0.0.1:9000/hook", "webhook_secret": SECRET}

    settings = load(monkeypatch, shop, mode=Mode.SANDBOX)
    assert make_endpoints(settings.clients)["shop"].url == "http://127.0.0.1:9000/hook"


@pytest.mark.parametrize(
    "url", ["https://1.1.1.1/hook", "https://[2606:4700:4700::1111]/", "https://shop.example:444/"]
)
def test_any_public_address_and_port_is_accepted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert make_endpoints(load(monkeypatch, {"webhook_url": url, "webhook_secret": SECRET}).clients)["shop"].url == url


def test_the_repr_of_the_settings_shows_no_webhook_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECRET not in repr(load(monkeypatch, {"webhook_url": URL, "webhook_secret": SECRET}))
