"""What the commands share: exit codes, options, and the way to what lies in Redis."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Annotated, TypeVar

import typer
from redis.exceptions import ResponseError

from app.api.problems import detail_of
from app.cli.checks import Result, check_redis
from app.settings import Settings, SettingsError, load_settings
from app.verification.errors import PhoneNotCallable, StoreFailure, StoreUnavailable
from app.verification.phone import Phone, parse_phone
from app.wiring import open_redis

EXIT_FAILED = 1
EXIT_SETTINGS = 2

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before.")]
PhoneArgument = Annotated[str, typer.Argument(metavar="PHONE", help="A Russian mobile number, however it is spelled.")]

_EMBEDDED = (
    "`make run` and `demo` have a Redis of their own, which no other process reaches: for commands beside them set"
    " MODE=sandbox, and the same REDIS_URL and SECRET_KEY for both."
)

_T = TypeVar("_T")
_Asked = TypeVar("_Asked")


def examples(*commands: str) -> str:
    """Write examples for the end of a command's help, each on a line of its own."""
    return "\n\n".join(["Examples:", *(f"plusofon-verify {command}" for command in commands)])


def fail(message: str) -> typer.Exit:
    """Say why a command fails; what is returned is to be raised."""
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
    """Read the phone that a command is about, or end the command: it is a wrong argument."""
    try:
        return parse_phone(text)
    except PhoneNotCallable as error:
        raise typer.BadParameter(detail_of(error)) from None


def moment(at: datetime) -> str:
    """Write a moment in UTC as the API does."""
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def settings_with_redis() -> Settings:
    """Read the settings for a command that looks into the Redis of a service. Raises SettingsError."""
    try:
        settings = load_settings()
    except SettingsError as error:
        if any(sentence.startswith("REDIS_URL is missing") for sentence in error.sentences):
            raise SettingsError([*error.sentences, _EMBEDDED]) from None
        raise
    if settings.redis.url is None:
        raise SettingsError([f"REDIS_URL is missing. {_EMBEDDED}"])
    return settings


def ask_redis(
    reach: Callable[[Settings], AbstractAsyncContextManager[_Asked]],
    question: Callable[[_Asked], Awaitable[_T]],
    *,
    settings: Settings | None = None,
) -> _T:
    """Ask something that lies in the Redis of the settings, or end the command where that fails."""
    logging.disable()  # whatever happens, the command itself tells it
    found = settings or settings_with_redis()

    async def ask() -> _T:
        async with reach(found) as asked:
            return await question(asked)

    try:
        return asyncio.run(ask())
    except StoreUnavailable as error:
        raise fail(why_redis_failed(found, error)) from None


def why_redis_failed(settings: Settings, error: StoreUnavailable) -> str:
    """Look as ``doctor`` does for what is wrong with Redis, after it failed, and say it in its words."""

    async def look() -> str:
        async with open_redis(settings) as redis:
            found = await check_redis(redis, within=settings.redis.timeout_seconds)
        return "\n".join(f"{one.told}. {one.advice}" for one in found if one.result is Result.WRONG)

    if error.reason is StoreFailure.ACCESS_DENIED and isinstance(error.__cause__, ResponseError):
        return "Redis refused: its user lacks a right. docs/operations.md has those that commands need."
    return asyncio.run(look()) or detail_of(error)
