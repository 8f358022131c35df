"""``keygen``: makes keys."""

import hashlib
import secrets
from typing import Annotated

import typer

from app.api_keys import CLIENT_NAME
from app.cli.common import examples
from app.tokens import generate_keys

cli = typer.Typer(
    name="keygen",
    help="Make keys.\n\nWithout a command: all that production requires, with a key for one client. The key of a client"
    " or an operator is shown once; the settings keep its hash.",
    invoke_without_command=True,
)


def _read_name(text: str) -> str:
    if not CLIENT_NAME.fullmatch(text):
        raise typer.BadParameter("a name is a-z, 0-9, _ and -, begins with a letter, and has at most 32")
    return text


_Name = Annotated[str, typer.Argument(parser=_read_name, metavar="NAME", help="Who will use it.")]


@cli.callback(epilog=examples("keygen --client shop", "keygen api-key shop", "keygen token-key"))
def keygen(
    context: typer.Context,
    client: Annotated[
        str, typer.Option(parser=_read_name, metavar="NAME", help="Name of the client that will use the API key.")
    ] = "default",
) -> None:
    """Print all the keys, unless a command asks for one."""
    if context.invoked_subcommand:
        return
    key, entry = _make_key(client)
    typer.echo(f"""\
# for the settings of the service
SECRET_KEY={secrets.token_urlsafe(48)}
SECRET_NAMES_KEY={secrets.token_urlsafe(48)}
TOKEN_KEYS={generate_keys()}
API_KEYS={entry}

# for the client {client}: send it as Authorization: Bearer …
{key}""")


@cli.command(epilog=examples("keygen api-key shop"))
def api_key(name: _Name) -> None:
    """Make an API key of a client, for API_KEYS.

    Several are separated by commas.
    """
    _print_key(name, "API_KEYS")


@cli.command(epilog=examples("keygen admin-key ivan"))
def admin_key(name: _Name) -> None:
    """Make a key of an operator, for ADMIN_KEYS.

    Several are separated by commas.
    """
    _print_key(name, "ADMIN_KEYS")


@cli.command(epilog=examples("keygen token-key"))
def token_key() -> None:
    """Make a key that signs tokens, for TOKEN_KEYS.

    It is a JWK: the whole setting, or during a rotation one of the keys of a JWK Set.
    """
    typer.echo(generate_keys())


def _print_key(name: str, setting: str) -> None:
    key, entry = _make_key(name)
    typer.echo(f"""\
# for the settings of the service: add it to {setting}
{entry}

# for {name}: send it as Authorization: Bearer …
{key}""")


def _make_key(name: str) -> tuple[str, str]:
    """Return a new key and its entry in the settings."""
    key = f"pvk_{secrets.token_urlsafe(32)}"
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"
