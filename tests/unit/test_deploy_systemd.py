"""deploy/systemd: the unit's numbers are those of the documentation, and long enough for what the service may take."""

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


def test_the_numbers_are_those_of_the_documentation() -> None:
    for name in ("TimeoutStopSec", "LimitNOFILE"):
        assert set(re.findall(rf"`{name}=(\d+)`", OPERATIONS)) == set(options()[name]), name


def test_it_waits_for_the_longest_request_before_it_kills() -> None:
    (seconds,) = options()["TimeoutStopSec"]

    assert int(seconds) > Settings(mode=Mode.SANDBOX).longest_request.total_seconds() + 3


def test_wrong_settings_are_not_tried_again() -> None:
    assert options()["RestartPreventExitStatus"] == [str(EXIT_SETTINGS)]


def test_a_reload_tells_the_first_process_and_a_stop_too() -> None:
    assert options()["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert options()["KillMode"] == ["mixed"]


def test_the_steps_of_the_documentation_make_what_the_unit_names() -> None:
    steps = OPERATIONS.partition("### With systemd")[2].partition("```sh")[2].partition("```")[0]
    (folder,), (variables,), (program,) = (
        options()[name] for name in ("WorkingDirectory", "EnvironmentFile", "ExecStart")
    )

    assert f"install -d -o {options()['User'][0]} -m 700 {folder}\n" in steps
    assert f"{folder}/.env\n" in steps
    assert f"> {variables.removeprefix('-')}\n" in steps
    assert f"python3 -m venv {program.removesuffix('/bin/plusofon-verify serve')}\n" in steps
