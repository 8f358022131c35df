"""The commands of the README work when pasted."""

import os
import re
import subprocess
from pathlib import Path

from tests.e2e.conftest import Demo

README = Path(__file__).parents[2] / "README.md"


REPEATED = 6  # more often than production calls a phone in an hour


def test_the_commands_of_the_first_screen_can_be_repeated(demo: Demo) -> None:
    _, transcript = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)[:2]

    done = subprocess.run(
        ["sh", "-c", REPEATED * transcript.replace("http://", "").replace("localhost:8000", demo.base_url)],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert done.stdout.count('"status":"pending"') == REPEATED
    assert done.stdout.count('"verified":true') == REPEATED


def test_every_setting_in_the_readme_exists() -> None:
    settings = (README.parent / ".env.example").read_text()

    table = README.read_text().partition("## Configuration")[2].partition("##")[0]
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+|MODE|HOST|PORT|PURPOSES)`", table))

    assert named
    for name in named:
        assert f"{name}=" in settings, name
