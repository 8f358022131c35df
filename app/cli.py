"""The command line: ``plusofon-verify serve | demo | openapi | keygen | guard list | guard lift``."""

import asyncio
import gc
import hashlib
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from math import ceil
from typing import Annotated, TypeVar

import typer
import uvicorn

from app.api.admin import GuardView
from app.main import create_api, create_app
from app.settings import CLIENT_NAME, Mode, Settings, SettingsError, load_settings
from app.telemetry.logging import configure_logging
from app.tokens import generate_keys
from app.verification.errors import StoreUnavailable
from app.verification.guard import FraudGuard
from app.verification.outbox import DeadLetters
from app.webhooks.cli import make_events_cli
from app.wiring import open_dead_letters, open_guard

_EXIT_FAILED = 1
_EXIT_SETTINGS = 2

cli = typer.Typer(
    name="plusofon-verify",
    help="Phone verification by voice call, for Russian numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show the values of local variables
)

guard_cli = typer.Typer(help="See what the fraud guard has blocked, and lift it.", no_args_is_help=True)
cli.add_typer(guard_cli, name="guard")

_T = TypeVar("_T")
_Asked = TypeVar("_Asked")

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
    typer.echo(f"SECRET_NAMES_KEY={secrets.token_urlsafe(48)}")
    typer.echo(f"TOKEN_KEYS={generate_keys()}")
    typer.echo(f"API_KEYS={client}:{hashlib.sha256(key.encode()).hexdigest()}")
    typer.echo(f"\n# for the client {client}: send it as Authorization: Bearer …")
    typer.echo(key)


@guard_cli.command("list")
def list_guard(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, as GET /admin/guard answers it.")] = False
) -> None:
    """List the ranges of numbers that are blocked now, and the clients of whose calls too few are answered."""
    found = _ask_guard(GuardView.of)
    typer.echo(found.model_dump_json(indent=2) if as_json else _guard_table(found))


@guard_cli.command()
def lift(number_range: Annotated[str, typer.Argument(metavar="RANGE", help="Such as +79001234.")]) -> None:
    """Lift the block of a range: it is called again at once."""
    if not _ask_guard(lambda guard: guard.lift(number_range)):
        typer.echo(f"The range {number_range} is not blocked.", err=True)
        raise typer.Exit(_EXIT_FAILED)
    typer.echo(f"The range {number_range} is called again.")


def _ask_dead_letters(question: Callable[[DeadLetters], Awaitable[_T]]) -> _T:
    """Ask for the events that were given up, in the Redis of the settings."""
    return _ask_redis(open_dead_letters, question)


cli.add_typer(make_events_cli(_ask_dead_letters), name="events")


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


def _ask_guard(question: Callable[[FraudGuard], Awaitable[_T]]) -> _T:
    """Ask the fraud guard in the Redis of the settings."""
    return _ask_redis(open_guard, question)


def _ask_redis(
    reach: Callable[[Settings], AbstractAsyncContextManager[_Asked]], question: Callable[[_Asked], Awaitable[_T]]
) -> _T:
    """Ask something that lies in the Redis of the settings."""
    logging.disable()  # whatever happens, the command itself tells it
    settings = _settings()
    if settings.redis.url is None:
        raise SettingsError(["REDIS_URL is missing: nobody but the sandbox itself reaches the Redis of the sandbox."])

    async def ask() -> _T:
        async with reach(settings) as asked:
            return await question(asked)

    try:
        return asyncio.run(ask())
    except StoreUnavailable:
        typer.echo("Redis did not answer in time.", err=True)
        raise typer.Exit(_EXIT_FAILED) from None


def _guard_table(found: GuardView) -> str:
    lines = [f"{'blocked range':16}{'until (UTC)':22}{'level':>6}{'calls':>7}{'verified':>10}"]
    lines += [
        f"{block.range:16}{block.until:%Y-%m-%d %H:%M:%S}   {block.level:>6}{block.calls:>7}{block.successes:>10}"
        for block in found.blocks
    ]
    if not found.blocks:
        lines.append("none")
    lines += [
        f"The client {suspect.client} is not blocked, but of {suspect.calls} calls {suspect.successes} were verified"
        f" (at {suspect.since:%Y-%m-%d %H:%M:%S} UTC)."
        for suspect in found.suspects
    ]
    return "\n".join(lines)


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
        timeout_graceful_shutdown=ceil(settings.longest_request.total_seconds()),
    )


def _banner(settings: Settings) -> str:
    who = "those with a key of API_KEYS" if settings.api.keys else "everybody"
    where = "the Redis of REDIS_URL" if settings.redis.url else "an embedded Redis"
    address = f"http://{settings.host}:{settings.port}"
    return f"""
  Plusofon Verify · SANDBOX: no real call is placed, codes can be read back,
  {who} may call the API, verifications are kept in {where}

    API docs     {address}/docs
    a phone      {address}/sandbox/phones/+79001234567/calls
    numbers      {address}/sandbox/magic-numbers

    curl -s {address}/verify/start -H 'Content-Type: application/json' -d '{{"phone": "+79001234567"}}'
"""
