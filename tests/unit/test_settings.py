"""Settings: closed by default, one sentence per mistake, no secret in any."""

import pytest

from app.settings import Mode, Settings, SettingsError, load_settings

SECRET = "not-a-real-secret-0123456789-0123456789"
PRODUCTION = {
    "PLUSOFON_USER_ID": "0",
    "PLUSOFON_ACCESS_TOKEN": "not-a-real-token",
    "SECRET_KEY": SECRET,
    "API_KEYS": f"shop:{'0' * 64},bank:{'1' * 64}",
    "REDIS_URL": "rediss://user:not-a-real-password@redis.example:6380/1",
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


def test_production_is_the_default_and_says_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mistakes(monkeypatch)

    assert [sentence.split()[0] for sentence in found] == list(PRODUCTION)
    assert all("is missing" in sentence and sentence.endswith(".") for sentence in found)


@pytest.mark.parametrize("name", PRODUCTION)
def test_each_required_setting_is_required(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for empty in ({}, {name: ""}):
        (sentence,) = mistakes(monkeypatch, **{**PRODUCTION, **empty} if empty else _without(name))
        assert sentence.startswith(name)
        monkeypatch.delenv(name, raising=False)


def _without(name: str) -> dict[str, str]:
    return {key: value for key, value in PRODUCTION.items() if key != name}


def test_complete_production_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **PRODUCTION)

    assert settings.mode is Mode.PRODUCTION
    assert settings.plusofon.user_id == "0"
    assert [(key.client, key.digest.hex()) for key in settings.api.keys] == [("shop", "0" * 64), ("bank", "1" * 64)]
    assert settings.secret_keys == [SECRET.encode()]


def test_the_sandbox_needs_nothing_and_makes_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, MODE="sandbox")

    assert settings.redis.url is None
    assert settings.secret_keys == settings.secret_keys
    assert len(settings.secret_keys[0]) >= 32


def test_the_sandbox_refuses_a_real_provider(monkeypatch: pytest.MonkeyPatch) -> None:
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
        ("PLUSOFON_BASE_URL", "http://restapi.example"),
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
    ],
)
def test_a_wrong_setting_is_told_by_its_name_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    found = mistakes(monkeypatch, **{**PRODUCTION, name: value})

    assert len(found) == 1
    assert found[0].startswith(name)
    assert found[0].endswith(".")
    for secret in ("too-short", "not-a-hash", SECRET):
        assert secret not in found[0]


def test_what_is_wrong_and_what_is_missing_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mistakes(monkeypatch, **{**_without("REDIS_URL"), "CODE_LENGTH": "9", "PORT": "x"})

    assert {sentence.split()[0] for sentence in found} == {"REDIS_URL", "CODE_LENGTH", "PORT"}


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        **PRODUCTION,
        PURPOSES="login, gift_card",
        CALL_COOLDOWNS_SECONDS="30,90",
        SECRET_PREVIOUS_KEYS=f"{SECRET}-1,{SECRET}-2",
    )

    assert settings.policy.purposes == {"login", "gift_card"}
    assert [pause.total_seconds() for pause in settings.policy.cooldowns] == [30, 90]
    assert settings.secret_keys == [SECRET.encode(), f"{SECRET}-1".encode(), f"{SECRET}-2".encode()]


def test_the_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(".env", "w", encoding="utf-8") as file:  # noqa: PTH123 - in the temporary folder
        file.write("MODE=sandbox\nCODE_LENGTH=4\nPORT=9000\nSOMETHING_OF_COMPOSE=1\n")

    settings = load(monkeypatch, CODE_LENGTH="5")

    assert (settings.mode, settings.code.length, settings.port) == (Mode.SANDBOX, 5, 9000)


def test_no_secret_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = repr(load(monkeypatch, **PRODUCTION, PLUSOFON_CABINET_TOKEN="not-a-real-cabinet-token"))

    for secret in (SECRET, "not-a-real-token", "not-a-real-cabinet-token", "not-a-real-password"):
        assert secret not in shown
