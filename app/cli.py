"""The command line: ``plusofon-verify serve | demo | openapi | keygen``."""

import gc
import hashlib
import json
import secrets
from typing import Annotated

import typer
import uvicorn

from app.main import create_api, create_app
from app.settings import CLIENT_NAME, Mode, Settings, SettingsError, load_settings
from app.telemetry.logging import configure_logging
from app.tokens import generate_keys

_EXIT_SETTINGS = 2
_DRAIN_SECONDS = 12  # a call in progress takes ten; the whole way from SIGTERM to the exit stays below fifteen

cli = typer.Typer(
    name="plusofon-verify",
    help="Phone verification by voice call, for Russian numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show the values of local variables
)

Host = Annotated[str | None, typer.Option(help="Address to listen on; HOST in the environment.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; PORT in the environment.")]


@cli.command()
def serve(host: Host = None, port: Port = None) -> None:
    """Serve the API with the settings of the environment (production mode unless MODE says otherwise)."""
    _serve(_settings(host=host, port=port))


@cli.command()
def demo(host: Host = None, port: Port = None) -> None:
    """Serve the sandbox: an embedded Redis and a virtual telephone network; no real call is placed."""
    settings = _settings(mode=Mode.SANDBOX, host=host, port=port)
    typer.echo(_banner(settings))
    _serve(settings)


@cli.command()
def openapi() -> None:
    """Print the OpenAPI description of the API."""
    typer.echo(json.dumps(create_api().openapi(), indent=2, ensure_ascii=False))


@cli.command()
def keygen(
    client: Annotated[str, typer.Option(help="Name of the client that will use the API key.")] = "default",
) -> None:
    """Make a SECRET_KEY, a key that signs tokens, and an API key.

    The API key is shown this once; the settings keep its hash.
    """
    if not CLIENT_NAME.fullmatch(client):
        raise typer.BadParameter("a client's name is a-z, 0-9, _ and -, begins with a letter, and has at most 32")
    key = f"pvk_{secrets.token_urlsafe(32)}"
    typer.echo("# for the settings of the service")
    typer.echo(f"SECRET_KEY={secrets.token_urlsafe(48)}")
    typer.echo(f"TOKEN_KEYS={generate_keys()}")
    typer.echo(f"API_KEYS={client}:{hashlib.sha256(key.encode()).hexdigest()}")
    typer.echo(f"\n# for the client {client}: send it as Authorization: Bearer …")
    typer.echo(key)


def main() -> None:
    """Run the command line; wrong settings are told in sentences, with exit code 2."""
    try:
        cli()
    except SettingsError as error:
        for sentence in error.sentences:
            typer.echo(sentence, err=True)
        raise SystemExit(_EXIT_SETTINGS) from None


def _settings(**overrides: object) -> Settings:
    return load_settings(**{name: value for name, value in overrides.items() if value is not None})


def _serve(settings: Settings) -> None:
    """Serve until told to stop; requests in progress are finished."""
    configure_logging(level=settings.log.level, style=settings.log.format)
    app = create_app(settings)
    # What exists now stays: out of the collector's sight, which else walks it all on the hot path.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )


def _banner(settings: Settings) -> str:
    address = f"http://{settings.host}:{settings.port}"
    return f"""
  Plusofon Verify · SANDBOX: no real call is placed, everybody may call the API, codes can be read back

    API docs     {address}/docs
    a phone      {address}/sandbox/phones/+79001234567/calls
    numbers      {address}/sandbox/magic-numbers

    curl -s {address}/verify/start -H 'Content-Type: application/json' -d '{{"phone": "+79001234567"}}'
"""
