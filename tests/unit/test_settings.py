"""Settings: production by default, one sentence per mistake, and no secret in an error message."""

from decimal import Decimal
from pathlib import Path

import pytest

from app.settings import Mode, Settings, SettingsError, load_settings
from app.settings.policies import make_policies
from app.tokens import generate_keys, read_keys

SECRET = "not-a-real-secret-0123456789-0123456789"
PRODUCTION = {
    "PLUSOFON_USER_ID": "0",
    "PLUSOFON_ACCESS_TOKEN": "not-a-real-token",
    "SECRET_KEY": SECRET,
    "API_KEYS": f"shop:{'0' * 64},bank:{'1' * 64}",
    "REDIS_URL": "rediss://user:not-a-real-password@redis.example:6380/1",
    "TOKEN_KEYS": generate_keys(),
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    for name in ("MODE", "HOST", "PORT", "PURPOSES", "CODE_LENGTH", "LOG_LEVEL", *PRODUCTION):
        monkeypatch.delenv(name, raising=False)


def load(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def mistakes(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, **environment)
    return caught.value.sentences


def test_production_is_the_default_mode_and_reports_every_missing_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mistakes(monkeypatch)

    assert [sentence.split()[0] for sentence in found] == list(PRODUCTION)
    assert all("is missing" in sentence and sentence.endswith(".") for sentence in found)


@pytest.mark.parametrize("name", PRODUCTION)
def test_each_required_setting_is_reported_when_missing_or_empty(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for empty in ({}, {name: ""}):
        (sentence,) = mistakes(monkeypatch, **{**PRODUCTION, **empty} if empty else _without(name))
        assert sentence.startswith(name)
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("blank", [",", " ", ", ,\n", "\t"])
def test_a_list_of_api_keys_without_items_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, blank: str
) -> None:
    assert mistakes(monkeypatch, **{**PRODUCTION, "API_KEYS": blank}) == ["API_KEYS must have at least 1 in its list."]

    (tmp_path / "keys").write_text(f",{blank}")
    in_a_file = {**PRODUCTION, "API_KEYS": "", "API_KEYS_FILE": str(tmp_path / "keys")}
    assert mistakes(monkeypatch, **in_a_file) == ["API_KEYS_FILE must have at least 1 in its list."]


def _without(name: str) -> dict[str, str]:
    return {key: value for key, value in PRODUCTION.items() if key != name}


def test_complete_production_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **PRODUCTION)

    assert settings.mode is Mode.PRODUCTION
    assert settings.plusofon.user_id == "0"
    assert [(key.client, key.digest.hex()) for key in settings.api.keys] == [("shop", "0" * 64), ("bank", "1" * 64)]
    assert settings.secret_keys == [SECRET.encode()]


def test_the_sandbox_needs_no_settings_and_generates_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, MODE="sandbox")

    assert settings.redis.url is None
    assert settings.secret_keys == settings.secret_keys
    assert len(settings.secret_keys[0]) >= 32


def test_the_sandbox_rejects_a_real_provider_url(monkeypatch: pytest.MonkeyPatch) -> None:
    (sentence,) = mistakes(monkeypatch, MODE="sandbox", PLUSOFON_BASE_URL="https://restapi.plusofon.ru")

    assert sentence.startswith("PLUSOFON_BASE_URL must be left out in sandbox mode")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODE", "prod"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("SECRET_KEY", "too-short"),
        ("SECRET_PREVIOUS_KEYS", f"{SECRET},too-short"),
        ("API_KEYS", "shop:not-a-hash"),
        ("API_KEYS", f"Shop:{'0' * 64}"),
        ("REDIS_URL", "http://redis.example"),
        ("REDIS_URL", "redis://:too-short/x@redis.example:6379/0"),
        ("REDIS_URL", "redis://:too-short#x@redis.example:6379/0"),
        ("REDIS_URL", "redis://[::1"),
        ("REDIS_URL", "redis://redis.example?socket_timeout=abc"),
        ("TOKEN_KEYS", "too-short"),
        ("TOKEN_KEYS", '{"kty": "oct", "k": "too-short"}'),
        ("TOKEN_KEYS_FILE", "/nonexistent"),
        ("TOKEN_KEYS_FILE", "/etc/hostname"),
        ("TOKEN_KEYS_FILE", "too-short" * 500),  # the keys themselves, longer than a name may be
        ("TOKEN_LIFETIME_SECONDS", "3601"),
        ("PLUSOFON_BASE_URL", "http://restapi.example"),
        ("PLUSOFON_BASE_URL", "https://"),
        ("PLUSOFON_ACCESS_TOKEN", "not a header"),
        ("PLUSOFON_USER_ID", "nummer \u2116"),
        ("PLUSOFON_PHONE_PREFIX", "9"),
        ("PLUSOFON_TIMEOUT_SECONDS", "1"),
        ("PLUSOFON_TIMEOUT_SECONDS", "nan"),
        ("CODE_LENGTH", "3"),
        ("CODE_LENGTH", "7"),
        ("CODE_LIFETIME_SECONDS", "301"),
        ("CALL_COOLDOWNS_SECONDS", "60,-1"),
        ("CALL_COOLDOWNS_SECONDS", ","),
        ("CHECK_LIMIT", "0"),
        ("PURPOSES", "Login"),
        ("PHONE_DENIED_PREFIXES", "900"),
        ("LOG_LEVEL", "loud"),
        ("LIMIT_CALLS_PER_DAY", "0"),
        ("MIN_BALANCE_RUB", "much"),
        ("MIN_BALANCE_RUB", "-1"),
        ("WARN_BALANCE_RUB", "NaN"),
        ("WARN_BALANCE_RUB", "9.99"),
        ("MIN_BALANCE_RUB", "100.01"),
        ("WATCH_PER_SECOND", "0"),
        ("ADMIN_KEYS", "operator"),
        ("TEST_NUMBERS", "+79001234567"),
        ("TEST_NUMBERS", "+79001234567=12"),
        ("TEST_NUMBERS", "87011234567=1234@2999-01-31"),
        ("TEST_NUMBERS", "+79001234567=1234@2999-02-31"),
        ("TEST_NUMBERS", "+79001234567=1234"),
        ("TEST_NUMBERS", "+79001234567=1234@2020-01-31"),
        ("CLIENTS", "{"),
        ("CLIENTS", '{"shop": {"calls": 1}}'),
        ("CLIENTS", '{"nobody": {}}'),
    ],
)
def test_an_invalid_setting_is_reported_by_name_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    found = mistakes(monkeypatch, **{**PRODUCTION, name: value})

    assert len(found) == 1
    assert name in found[0]
    assert found[0].endswith(".")
    for secret in ("too-short", "not-a-hash", SECRET):
        assert secret not in found[0]


def test_invalid_and_missing_settings_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mistakes(monkeypatch, **{**_without("REDIS_URL"), "CODE_LENGTH": "9", "PORT": "x"})

    assert {sentence.split()[0] for sentence in found} == {"REDIS_URL", "CODE_LENGTH", "PORT"}


def test_balance_settings_are_exact_decimals(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch, MODE="sandbox", MIN_BALANCE_RUB="49.99", WARN_BALANCE_RUB="50.01", WATCH_PER_SECOND="7"
    )

    assert (settings.min_balance_rub, settings.warn_balance_rub) == (Decimal("49.99"), Decimal("50.01"))
    assert settings.watch_per_second == 7


def test_a_warning_balance_below_the_minimum_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mistakes(monkeypatch, MODE="sandbox", MIN_BALANCE_RUB="200")

    assert found == ["WARN_BALANCE_RUB must be at least MIN_BALANCE_RUB."]


def test_token_keys_can_be_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(PRODUCTION["TOKEN_KEYS"], encoding="utf-8")

    settings = load(monkeypatch, **{**_without("TOKEN_KEYS"), "TOKEN_KEYS_FILE": str(file)})
    assert settings.token_keys == PRODUCTION["TOKEN_KEYS"]

    (sentence,) = mistakes(monkeypatch, **{**PRODUCTION, "TOKEN_KEYS_FILE": str(file)})
    assert sentence == "TOKEN_KEYS_FILE must be left out where TOKEN_KEYS is given."


def test_the_sandbox_generates_its_own_token_key_and_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, MODE="sandbox")

    assert read_keys(settings.token_keys).as_dict() == read_keys(settings.token_keys).as_dict()


def test_list_settings_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        **PRODUCTION,
        PURPOSES="login, gift_card",
        CALL_COOLDOWNS_SECONDS="30,90",
        SECRET_PREVIOUS_KEYS=f"{SECRET}-1,{SECRET}-2",
    )

    assert make_policies(settings).default.purposes == {"login", "gift_card"}
    assert [pause.total_seconds() for pause in make_policies(settings).default.cooldowns] == [30, 90]
    assert settings.secret_keys == [SECRET.encode(), f"{SECRET}-1".encode(), f"{SECRET}-2".encode()]


def test_the_environment_overrides_the_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(".env", "w", encoding="utf-8") as file:  # noqa: PTH123 - in the temporary folder
        file.write("MODE=sandbox\nCODE_LENGTH=4\nPORT=9000\nSOMETHING_OF_COMPOSE=1\n")

    settings = load(monkeypatch, CODE_LENGTH="5")

    assert (settings.mode, settings.code.length, settings.port) == (Mode.SANDBOX, 5, 9000)


def test_an_empty_environment_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("MODE=sandbox\nTLS_CERT_FILE=cert.pem\nTLS_KEY_FILE=key.pem\nPORT=9000\n", encoding="utf-8")

    settings = load(monkeypatch, TLS_CERT_FILE="", TLS_KEY_FILE="", PORT="")

    assert (settings.tls.cert_file, settings.port) == (None, 8000)


def test_the_repr_of_the_settings_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = repr(load(monkeypatch, **PRODUCTION, PLUSOFON_CABINET_TOKEN="not-a-real-cabinet-token"))

    for secret in (SECRET, "not-a-real-token", "not-a-real-cabinet-token", "not-a-real-password"):
        assert secret not in shown


def test_a_client_overrides_only_the_settings_it_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    own = '{"shop": {"purposes": ["login"], "calls_per_minute": 7, "calls_per_day": 50, "failed_checks": 9}}'
    policies = make_policies(load(monkeypatch, **PRODUCTION, CLIENTS=own))

    shop, bank = policies.for_client("shop"), policies.for_client("bank")
    assert bank == policies.default
    assert shop.purposes == {"login"}
    assert shop.calls_per_phone == bank.calls_per_phone
    assert [(limit.name, limit.count) for limit in shop.calls_per_client] == [
        ("calls_per_client", 7),
        ("calls_per_client_day", 50),
    ]
    assert shop.failed_checks_per_client is not None
    assert shop.failed_checks_per_client.count == 9


def test_shorter_codes_allow_fewer_failed_checks_per_phone(monkeypatch: pytest.MonkeyPatch) -> None:
    for length, allowed in ((4, 15), (5, 30), (6, 50)):
        policy = make_policies(load(monkeypatch, MODE="sandbox", CODE_LENGTH=str(length), CHANNELS="voice")).default
        assert policy.failed_checks_per_phone.count == allowed


def test_a_test_number_needs_no_expiry_date_in_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    ((phone, fixed),) = load(monkeypatch, MODE="sandbox", TEST_NUMBERS="+79001234567=0042").test_numbers

    assert (phone.e164, fixed.code, fixed.until) == ("+79001234567", "0042", None)
