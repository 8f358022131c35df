"""Misspelt settings are detected, and variables of other programs are not."""

import os
import re
from pathlib import Path

import pytest

from app.settings.misspelt import misspelt_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where .env is looked for
    for name in os.environ:
        monkeypatch.delenv(name)


def test_an_unknown_name_in_the_env_file_that_resembles_a_setting_is_reported() -> None:
    Path(".env").write_text(
        "LIMIT_CALLS_PER_DY=5\nlimit_whatever=1\nWORKER=4\nREDIS_URI=\nSITE=x\nCOMPOSE_PROJECT_NAME=x\nPORT=1\n",
        encoding="utf-8",
    )

    assert misspelt_settings() == {
        "LIMIT_CALLS_PER_DY": "LIMIT_CALLS_PER_DAY",
        "LIMIT_WHATEVER": "",
        "REDIS_URI": "",
        "WORKER": "WORKERS",
    }


def test_all_names_in_env_example_and_compose_are_known() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    asked = re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    every = re.sub(r"^#(?=[A-Z])", "", text, flags=re.MULTILINE) + "".join(f"{name}=x\n" for name in asked)
    Path(".env").write_text(every, encoding="utf-8")

    assert misspelt_settings() == {}


def test_in_the_environment_only_unknown_names_specific_to_this_service_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    misspelt = {"PLUSOFON_TOKEN": "", "LIMIT_CALLS_DAILY": "", "RELAY_CHANELS": "RELAY_CHANNELS"}
    others = (
        "REDIS_PORT",
        "REDIS_SERVICE_HOST",
        "PLUSOFON_VERIFY_PORT",
        "PLUSOFON_VERIFY_NAME",
        "PLUSOFON_SERVICE_HOST",
        "PLUSOFON_SERVICE_PORT",
        "PLUSOFON_SERVICE_PORT_HTTPS",
        "PLUSOFON_PORT",
        "PLUSOFON_PORT_443_TCP",
        "PLUSOFON_PORT_443_TCP_ADDR",
        "SECRET_KEYS",
        "TEST_DATA",
        "HOSTS",
        "LOG_LEVELS",
    )
    for name in (*misspelt, *others):
        monkeypatch.setenv(name, "x")

    assert misspelt_settings() == misspelt
