"""Settings of the server: TLS, workers and proxies; and the redacted settings that are logged at start."""

from pathlib import Path

import pytest
import trustme

from app.settings import SettingsError, load_settings
from app.settings.redact import redacted_settings
from tests.unit.test_settings import PRODUCTION, SECRET


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where .env is looked for


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "all.pem"
    trustme.CA().issue_cert("verify.example").private_key_and_cert_chain_pem.write_to_path(path)
    return path


def mistakes(**overrides: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(mode="sandbox", **overrides)
    return caught.value.sentences


def test_a_certificate_and_its_key_are_accepted(pem: Path) -> None:
    settings = load_settings(mode="sandbox", tls={"cert_file": str(pem), "key_file": str(pem)})

    assert settings.tls.cert_file == pem
    assert settings.reachable_url == "https://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("tls", "sentence"),
    [
        ({"cert_file": "{pem}"}, "TLS_KEY_FILE is missing, beside TLS_CERT_FILE."),
        ({"key_file": "{pem}"}, "TLS_CERT_FILE is missing, beside TLS_KEY_FILE."),
        ({"cert_file": "/nonexistent", "key_file": "{pem}"}, "TLS_CERT_FILE cannot be read."),
        ({"cert_file": "/", "key_file": "{pem}"}, "TLS_CERT_FILE cannot be read."),
        ({"cert_file": "/dev/zero", "key_file": "{pem}"}, "TLS_CERT_FILE cannot be read."),
        ({"cert_file": "{pem}", "key_file": "x" * 5000}, "TLS_KEY_FILE cannot be read."),
        (
            {"cert_file": "{empty}", "key_file": "{pem}"},
            "TLS_CERT_FILE must be a certificate in PEM, and TLS_KEY_FILE its private key without a password.",
        ),
    ],
)
def test_an_invalid_tls_file_is_reported_in_one_sentence(
    pem: Path, tmp_path: Path, tls: dict[str, str], sentence: str
) -> None:
    (tmp_path / "empty").touch()
    files = {name: path.format(pem=pem, empty=tmp_path / "empty") for name, path in tls.items()}

    assert mistakes(tls=files) == [sentence]


def test_the_sandbox_allows_only_one_worker() -> None:
    assert mistakes(workers=2) == ["WORKERS must be 1 in sandbox mode, whose telephone network lives in one process."]


def test_proxies_are_ip_addresses_or_networks() -> None:
    settings = load_settings(mode="sandbox", proxy_addresses="10.0.0.0/8, 192.0.2.1")

    assert [str(network) for network in settings.proxy_addresses] == ["10.0.0.0/8", "192.0.2.1/32"]
    assert mistakes(proxy_addresses="*")[0].startswith("PROXY_ADDRESSES (item 1)")


def test_redacted_settings_show_only_changed_values_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**PRODUCTION, "PLUSOFON_USER_ID": "my-user-id"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TEST_NUMBERS", "+79001234567=1234@2099-01-31")
    monkeypatch.setenv(
        "CLIENTS",
        '{"shop": {"webhook_url": "https://shop.example/a-secret-path",'
        ' "webhook_secret": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"}}',
    )
    monkeypatch.setenv("PROXY_ADDRESSES", "10.0.0.0/8")
    monkeypatch.setenv("LIMIT_CALLS_PER_DAY", "50")

    shown = redacted_settings(load_settings())

    assert shown == {
        **dict.fromkeys(("PLUSOFON_USER_ID", "PLUSOFON_ACCESS_TOKEN", "SECRET_KEY", "API_KEYS", "TOKEN_KEYS"), "***"),
        "TEST_NUMBERS": "***",
        "REDIS_URL": "rediss://***@redis.example:6380/1",
        "CLIENTS": "shop",
        "PROXY_ADDRESSES": "10.0.0.0/8",
        "LIMIT_CALLS_PER_DAY": "50",
    }
    for secret in (SECRET, "not-a-real", "my-user-id", "0" * 64, "1234=", "a-secret-path"):
        assert secret not in str(shown)


@pytest.mark.parametrize(
    "location", ["sentinel://%a.example:26379,b.example/main/1", "cluster://%a.example:7000,b.example"]
)
def test_a_redacted_url_of_several_hosts_shows_these_and_no_password(
    monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    url = f"redis+{location.replace('%', 'verify:not-a-real@')}?password=not-a-real"
    for name, value in {**PRODUCTION, "REDIS_URL": url}.items():
        monkeypatch.setenv(name, value)

    settings = load_settings()

    assert redacted_settings(settings)["REDIS_URL"] == f"redis+{location.replace('%', '***@')}"
    assert "not-a-real" not in repr(settings)
