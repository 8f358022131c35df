"""What the commands share: exit codes, options, and the way to what lies in Redis."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, TypeVar

import typer
from redis.exceptions import NoPermissionError

from app.api.problems import detail_of
from app.settings import Settings, SettingsError, load_settings
from app.verification.errors import PhoneNotCallable, StoreUnavailable
from app.verification.phone import Phone, parse_phone

EXIT_FAILED = 1
EXIT_SETTINGS = 2

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before.")]
PhoneArgument = Annotated[str, typer.Argument(metavar="PHONE", help="A Russian mobile number, however it is spelled.")]

_T = TypeVar("_T")
_Asked = TypeVar("_Asked")


def examples(*commands: str) -> str:
    """Write examples for the end of a command's help, each on a line of its own."""
    return "\n\n".join(["Examples:", *(f"plusofon-verify {command}" for command in commands)])


def fail(message: str) -> typer.Exit:
    """Tell why a command fails; what is returned is to be raised."""
    typer.echo(message, err=True)
    return typer.Exit(EXIT_FAILED)


def settings_with(**options: object) -> Settings:
    """Read the settings; options that are given come before the environment, for processes started from here too.

    Raises:
        SettingsError: something is missing or wrong.

    """
    os.environ.update({name: str(value) for name, value in options.items() if value is not None})
    return load_settings()


def read_phone(text: str) -> Phone:
    """Read the phone that a command is about, or end the command."""
    try:
        return parse_phone(text)
    except PhoneNotCallable as error:
        raise fail(detail_of(error)) from None


def settings_with_redis() -> Settings:
    """Read the settings for a command that looks into the Redis of a service. Raises SettingsError."""
    settings = load_settings()
    if settings.redis.url is None:
        raise SettingsError(["REDIS_URL is missing: nobody but the sandbox itself reaches the Redis of the sandbox."])
    return settings


def ask_redis(
    reach: Callable[[Settings], AbstractAsyncContextManager[_Asked]],
    question: Callable[[_Asked], Awaitable[_T]],
    *,
    settings: Settings | None = None,
) -> _T:
    """Ask something that lies in the Redis of the settings, or end the command where that does not answer."""
    logging.disable()  # whatever happens, the command itself tells it
    found = settings or settings_with_redis()

    async def ask() -> _T:
        async with reach(found) as asked:
            return await question(asked)

    try:
        return asyncio.run(ask())
    except StoreUnavailable as error:
        if isinstance(error.__cause__, NoPermissionError):
            raise fail(
                "Redis refused: its user lacks a right. docs/operations.md has those that commands need."
            ) from None
        raise fail("Redis did not answer in time.") from None
