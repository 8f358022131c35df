"""What the commands share: exit codes, options, and access to the objects of the service."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, TypeVar

import typer
from redis.exceptions import ResponseError

from app.api.problems import detail_of
from app.cli.checks import Finding, Result, check_redis
from app.cli.cluster import check_cluster
from app.container import Container, make_network, open_container
from app.sandbox.network import VirtualNetwork
from app.sandbox.run_file import RunningSandbox, running_sandboxes
from app.settings import Mode, Settings, SettingsError, given_settings, load_settings, may_look_for_sandbox
from app.telemetry.logging import disable_logging
from app.verification.errors import PhoneNotCallable, StoreFailure, StoreUnavailable
from app.verification.phone import Phone, parse_phone

EXIT_FAILED = 1
EXIT_SETTINGS = 2

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before.")]
PhoneArgument = Annotated[str, typer.Argument(metavar="PHONE", help="A Russian mobile number, however it is spelled.")]

_NO_SANDBOX = (
    "No sandbox of yours runs on this machine (`make run` starts one). For a sandbox elsewhere set MODE=sandbox, and"
    " the same REDIS_URL and SECRET_KEY for both."
)

_T = TypeVar("_T")


def examples(*commands: str) -> str:
    """Return the examples at the end of a command's help, each on a line of its own."""
    return "\n  ".join(["\b\nExamples:", *(f"plusofon-verify {command}" for command in commands)])


def fail(message: str) -> typer.Exit:
    """Print why a command fails, and return the exception to raise."""
    typer.echo(message, err=True)
    return typer.Exit(EXIT_FAILED)


def settings_with(**options: object) -> Settings:
    """Return the settings; ``options`` override the environment, also of worker processes. Raises SettingsError."""
    os.environ.update({name: str(value) for name, value in options.items() if value is not None})
    return load_settings()


def read_phone(text: str) -> Phone:
    """Return the phone of an argument. Raises BadParameter."""
    try:
        return parse_phone(text)
    except PhoneNotCallable as error:
        raise typer.BadParameter(detail_of(error)) from None


def moment(at: datetime) -> str:
    """Return a moment in UTC as the API writes it."""
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def find_sandbox() -> RunningSandbox | None:
    """Return the running sandbox that a command is about, and print which it is; None if the settings forbid to look.

    Fail if several run, and PORT names none of them.
    """
    if not may_look_for_sandbox():
        return None
    found = running_sandboxes()
    port = given_settings().get("PORT")
    if len(found) > 1:
        urls = ", ".join(sandbox.url for sandbox in found)
        found = [sandbox for sandbox in found if str(sandbox.port) == port]
        if not found:
            raise fail(f"Several sandboxes run: {urls}. Set PORT to that of one of them.")
    if not found:
        return None
    typer.echo(f"The sandbox at {found[0].url}:", err=True)
    return found[0]


def settings_of(sandbox: RunningSandbox) -> Settings:
    """Return the settings of a command that needs the Redis of a sandbox. Raises SettingsError."""
    keys = {"key": sandbox.secret_key, "names_key": sandbox.names_key}
    return load_settings(mode=Mode.SANDBOX, redis={"url": sandbox.redis_url}, secret=keys)


def settings_with_redis() -> Settings:
    """Return the settings of a command that needs the Redis of a service, or of the sandbox that runs.

    Raises SettingsError.
    """
    if sandbox := find_sandbox():
        return settings_of(sandbox)
    try:
        settings = load_settings()
    except SettingsError as error:
        if any(sentence.startswith("REDIS_URL is missing") for sentence in error.sentences):
            raise SettingsError([*error.sentences, _NO_SANDBOX]) from None
        raise
    if settings.redis.url is None:
        raise SettingsError([f"REDIS_URL is missing. {_NO_SANDBOX}"])
    return settings


def run_with_container(
    use: Callable[[Container], Awaitable[_T]], settings: Settings | None = None, network: VirtualNetwork | None = None
) -> _T:
    """Return the result of ``use``, or end the command with what is wrong with Redis.

    Without ``settings``, those of the environment, which must have a Redis; without ``network``, the sandbox gets a new
    one. Raises SettingsError.
    """
    disable_logging()
    settings = settings or settings_with_redis()

    async def run() -> _T:
        async with open_container(settings, network or make_network(settings)) as container:
            return await use(container)

    try:
        return asyncio.run(run())
    except StoreUnavailable as error:
        raise fail(_why_redis_failed(settings, error)) from None


def _why_redis_failed(settings: Settings, error: StoreUnavailable) -> str:
    """Return what ``doctor`` finds wrong with Redis after an error, or else the text of the error."""
    if error.reason is StoreFailure.ACCESS_DENIED and isinstance(error.__cause__, ResponseError):
        return "Redis refused: its user lacks a right. docs/operations.md has those that commands need."
    timeout, prefix = settings.redis.timeout_seconds, settings.redis.key_prefix

    async def check(container: Container) -> list[Finding]:
        redis = container.stores.redis
        of_cluster = await check_cluster(redis, timeout=timeout, prefix=prefix)
        return of_cluster or await check_redis(redis, timeout=timeout, prefix=prefix)

    found = run_with_container(check, settings)
    return "\n".join(f"{one.message}. {one.advice}" for one in found if one.result is Result.WRONG) or detail_of(error)
