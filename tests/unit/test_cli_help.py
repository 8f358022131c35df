"""The help of every command fits a terminal of 80 columns, and completion knows the commands and their values."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from app.cli import cli


def _commands(group: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from _commands(_loaded(command), (*path, name))


def _loaded(command: Any) -> Any:  # noqa: ANN401 - of a part of typer that is not public
    return command.make_context(command.name, [], resilient_parsing=True).command


ROOT: Any = typer.main.get_command(cli)
COMMANDS = list(_commands(ROOT))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_of_a_command_fits_80_columns_and_cuts_nothing_off(command: tuple[str, ...], option: str) -> None:
    shown = CliRunner().invoke(cli, [*command, option], env={"COLUMNS": "80"})

    assert shown.exit_code == 0
    assert shown.stdout.startswith("Usage: ")
    _, *lines = shown.stdout.splitlines()
    assert [line for line in lines if len(line) > 80 or line.endswith("...")] == []


@pytest.mark.parametrize("name", ROOT.commands)
def test_the_list_of_commands_has_the_first_sentence_of_the_help_of_each(name: str) -> None:
    listed = ROOT.commands[name]

    assert listed.get_short_help_str(80) == _loaded(listed).get_short_help_str(80)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered_for_each_shell(shell: str) -> None:
    script = _complete(f"source_{shell}")

    assert "plusofon-verify" in script or "plusofon_verify" in script
    assert f"complete_{shell}" in script


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("plusofon-verify ev", {"events"}),
        ("plusofon-verify keygen ", {"api-key", "admin-key", "token-key"}),
        ("plusofon-verify events trigger verification.c", {"verification.created", "verification.canceled"}),
    ],
)
def test_completion_offers_commands_and_types_of_events(words: str, expected: set[str]) -> None:
    offered = _complete("complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))

    assert set(offered.split()) == expected


def _complete(instruction: str, **environment: str) -> str:
    """Run the program as the completion of a shell does."""
    program = "import sys; sys.argv = ['plusofon-verify']; from app.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"_PLUSOFON_VERIFY_COMPLETE": instruction, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
