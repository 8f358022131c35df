"""``keygen`` and ``openapi``: what is made of nothing but the program itself."""

import hashlib
import json
import secrets
from typing import Annotated

import typer

from app.main import create_api
from app.settings.validators import CLIENT_NAME
from app.tokens import generate_keys


def openapi() -> None:
    """Print the OpenAPI description of the API, as JSON."""
    typer.echo(json.dumps(create_api().openapi(), indent=2, ensure_ascii=False))


def keygen(
    client: Annotated[str, typer.Option(help="Name of the client that will use the API key.")] = "default",
) -> None:
    """Make a SECRET_KEY, a key that signs tokens, and an API key.

    The API key is shown this once; the settings keep its hash.
    """
    if not CLIENT_NAME.fullmatch(client):
        raise typer.BadParameter("a client's name is a-z, 0-9, _ and -, begins with a letter, and has at most 32")
    key = f"pvk_{secrets.token_urlsafe(32)}"
    typer.echo(f"""\
# for the settings of the service
SECRET_KEY={secrets.token_urlsafe(48)}
SECRET_NAMES_KEY={secrets.token_urlsafe(48)}
TOKEN_KEYS={generate_keys()}
API_KEYS={client}:{hashlib.sha256(key.encode()).hexdigest()}

# for the client {client}: send it as Authorization: Bearer …
{key}""")
