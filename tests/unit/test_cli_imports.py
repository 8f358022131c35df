"""A command imports what it needs and no more: its user waits for that each time."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from app.cli import main
main()
"""
FRAMEWORKS = {"aiohttp", "fastapi", "starlette", "structlog", "uvicorn"}
NO_SETTINGS = FRAMEWORKS | {"app.settings", "httpx", "redis"}
NO_CONTAINER = FRAMEWORKS | {"app.container", "httpx"}


def imported_by(arguments: str, folder: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments.split()],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "MODE": "sandbox", "REDIS_URL": "unix:///nowhere", "SECRET_KEY": "0" * 64},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return {*done.stderr.splitlines()[-1].split()}


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        ("--help", NO_SETTINGS | {"asyncio", "pydantic"}),
        ("--version", NO_SETTINGS | {"asyncio", "pydantic"}),
        ("keygen", NO_SETTINGS),
        ("keygen api-key shop", NO_SETTINGS),
        ("attempts find +79001234567", NO_CONTAINER),
        ("attempts list", NO_CONTAINER),
        ("verifications show vrf_0a11b22c33d44e55f667788", NO_CONTAINER),
        ("stats --by client", NO_CONTAINER),
        ("guard list", NO_CONTAINER),
        ("forget +79001234567 --yes", NO_CONTAINER),
        ("events failed", FRAMEWORKS | {"app.container"}),
    ],
)
def test_a_command_imports_nothing_that_it_does_not_need(arguments: str, unneeded: set[str], tmp_path: Path) -> None:
    imported = imported_by(arguments, tmp_path)

    assert "app.cli" in imported
    assert imported & unneeded == set()


def test_the_commands_that_serve_import_all_of_it(tmp_path: Path) -> None:
    """Else the names above would be wrong."""
    assert imported_by("serve --help", tmp_path) >= NO_SETTINGS | NO_CONTAINER
