"""``openapi``: the description of the API."""

import json

import typer

from app.cli.common import examples
from app.main import create_api

cli = typer.Typer()


@cli.command(epilog=examples("openapi > openapi.json"))
def openapi() -> None:
    """Print the OpenAPI description of the API, as JSON."""
    typer.echo(json.dumps(create_api().openapi(), indent=2, ensure_ascii=False))
