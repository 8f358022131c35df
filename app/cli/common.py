"""What the commands share: exit codes, options, examples in their help. It imports nothing of the service."""

from datetime import datetime
from typing import Annotated

import typer

EXIT_FAILED = 1
EXIT_SETTINGS = 2

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before.")]


def examples(*commands: str) -> str:
    """Return the examples at the end of a command's help, each on a line of its own."""
    return "\n  ".join(["\b\nExamples:", *(f"plusofon-verify {command}" for command in commands)])


def fail(message: str) -> typer.Exit:
    """Print why a command fails, and return the exception to raise."""
    typer.echo(message, err=True)
    return typer.Exit(EXIT_FAILED)


def moment(at: datetime) -> str:
    """Return a moment in UTC as the API writes it."""
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
