"""The command line: ``plusofon-verify``. Each command, or group of commands, is imported when it is called."""

import os
import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app.cli.common import EXIT_SETTINGS
from app.cli.lazy import LazyCommand
from app.settings_error import SettingsError

_COMMANDS = (
    LazyCommand("serve", module="app.cli.serving", help="Serve the API, in production mode unless MODE differs."),
    LazyCommand("demo", module="app.cli.serving", help="Serve the sandbox, which needs no settings."),
    LazyCommand("doctor", module="app.cli.doctor", help="Check settings, Redis, the provider and this machine."),
    LazyCommand("call", module="app.cli.call", help="Place one real call, and ask which code was heard."),
    LazyCommand("stats", module="app.cli.stats", help="Print calls, conversion and spend, of today or a month."),
    LazyCommand("forget", module="app.cli.erasure", help="Erase all that Redis holds about a phone."),
    LazyCommand("openapi", module="app.cli.openapi", help="Print the OpenAPI description of the API, as JSON."),
    LazyCommand("keygen", module="app.cli.keygen", help="Make keys."),
    LazyCommand("attempts", module="app.cli.attempts", help="See what became of each call."),
    LazyCommand("verifications", module="app.cli.verifications", help="Look at single verifications."),
    LazyCommand("guard", module="app.cli.fraud_guard", help="See what the fraud guard has blocked, and lift it."),
    LazyCommand("events", module="app.cli.events", help="Watch, try and resend webhook events."),
)


class _Commands(TyperGroup):
    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - only passed on
        super().__init__(**options)
        self.commands.update((str(command.name), command) for command in _COMMANDS)


cli = typer.Typer(
    name="plusofon-verify",
    cls=_Commands,
    help="Phone verification by voice call, for Russian numbers.",
    epilog="Settings come from the environment and .env; .env.example lists them all."
    "\n\nExit codes: 0 it is done, or all is well; 1 it failed, or the answer is no; 2 wrong settings or arguments,"
    " or the address is in use; 3 the service did not start. SIGTERM ends a service with 0.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain text, which wraps at the width of the terminal
    pretty_exceptions_enable=False,  # its tracebacks show the values of local variables
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - as the library calls it
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - takes as long as the rest of this module

        typer.echo(version("plusofon-verify"))
        raise typer.Exit


@cli.callback()
def _options(
    context: typer.Context,
    *,
    _: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options that belong to no command, and NO_COLOR (https://no-color.org)."""
    if os.environ.get("NO_COLOR"):
        context.color = False  # of all that the commands print


def main() -> None:
    """Run the command line; print what is wrong with the settings, with exit code 2."""
    if isinstance(sys.stdout, TextIOWrapper):  # in KOI8-R or CP1251 there is no ✓
        sys.stdout.reconfigure(errors="replace")
    try:
        cli()
    except SettingsError as error:
        for sentence in error.sentences:
            typer.echo(sentence, err=True)
        raise SystemExit(EXIT_SETTINGS) from None
