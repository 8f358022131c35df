"""The command line: ``plusofon-verify``. Each group of commands has a module of its own."""

import os
import sys
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from app.cli.attempts import attempts_cli
from app.cli.call import call
from app.cli.common import EXIT_SETTINGS, examples
from app.cli.doctor import doctor
from app.cli.erasure import forget
from app.cli.fraud_guard import guard_cli
from app.cli.keygen import keygen_cli, openapi
from app.cli.sandbox_events import tail, trigger
from app.cli.serving import demo, serve
from app.cli.stats import stats
from app.cli.verifications import verifications_cli
from app.cli.webhooks import events_cli
from app.settings import SettingsError

cli = typer.Typer(
    name="plusofon-verify",
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


cli.command(epilog=examples("serve --workers 4", "serve --host 0.0.0.0 --tls-cert chain.pem --tls-key key.pem"))(serve)
cli.command(epilog=examples("demo", "demo --port 8080"))(demo)
cli.command(epilog=examples("doctor", "doctor --json"))(doctor)
cli.command(epilog=examples("call +79001234567", "call 89001234567 --lang en --yes --no-check"))(call)
cli.command(
    epilog=examples("stats", "stats --by client --month 2026-01 --csv", "stats --by operator --by hour --json")
)(stats)
cli.command(epilog=examples("forget +79001234567", "forget +79001234567 --yes --json"))(forget)
cli.command(epilog=examples("openapi > openapi.json"))(openapi)
events_cli.command(epilog=examples("events tail", "events tail --forward-to localhost:9000/hooks/phone"))(tail)
events_cli.command(epilog=examples("events trigger verification.verified"))(trigger)
cli.add_typer(keygen_cli, name="keygen")
cli.add_typer(attempts_cli, name="attempts")
cli.add_typer(verifications_cli, name="verifications")
cli.add_typer(guard_cli, name="guard")
cli.add_typer(events_cli, name="events")


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
