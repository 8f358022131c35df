"""deploy/systemd: the unit's numbers agree with the documentation, and its time-outs with the settings."""

import re
from collections import defaultdict
from pathlib import Path

from app.cli.common import EXIT_SETTINGS
from app.settings import Mode, Settings

ROOT = Path(__file__).parents[2]
UNIT = (ROOT / "deploy" / "systemd" / "plusofon-verify.service").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def options() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE):
        found[name].append(value)
    return found


def test_numbers_of_the_unit_agree_with_operations_md() -> None:
    for name in ("TimeoutStopSec", "LimitNOFILE"):
        assert set(re.findall(rf"`{name}=(\d+)`", OPERATIONS)) == set(options()[name]), name


def test_the_stop_timeout_is_longer_than_the_longest_request() -> None:
    (seconds,) = options()["TimeoutStopSec"]

    assert int(seconds) > Settings(mode=Mode.SANDBOX).longest_request.total_seconds() + 3


def test_the_service_is_not_restarted_after_invalid_settings() -> None:
    assert options()["RestartPreventExitStatus"] == [str(EXIT_SETTINGS)]


def test_reload_and_stop_signal_the_main_process() -> None:
    assert options()["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert options()["KillMode"] == ["mixed"]


def test_the_documented_steps_create_every_path_that_the_unit_uses() -> None:
    steps = OPERATIONS.partition("### With systemd")[2].partition("```sh")[2].partition("```")[0]
    (folder,), (variables,), (program,) = (
        options()[name] for name in ("WorkingDirectory", "EnvironmentFile", "ExecStart")
    )

    assert f"install -d -o {options()['User'][0]} -m 700 {folder}\n" in steps
    assert f"{folder}/.env\n" in steps
    assert f"> {variables.removeprefix('-')}\n" in steps
    assert f"python3 -m venv {program.removesuffix('/bin/plusofon-verify serve')}\n" in steps
