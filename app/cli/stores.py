"""The stores that a command uses: those of a service, or of the sandbox that runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import typer
from redis.exceptions import ResponseError

from app.api.problem_types import detail_of
from app.cli.checks import Finding, Result, check_redis
from app.cli.cluster import check_cluster
from app.cli.common import fail
from app.sandbox.run_file import RunningSandbox, running_sandboxes
from app.settings import Mode, Settings, SettingsError, given_settings, load_settings, may_look_for_sandbox
from app.settings.clients import make_endpoints
from app.stores import Stores, open_stores
from app.telemetry.metrics import Metrics
from app.verification.errors import StoreFailure, StoreUnavailable

_NO_SANDBOX = (
    "No sandbox of yours runs on this machine (`make run` starts one). For a sandbox elsewhere set MODE=sandbox, and"
    " the same REDIS_URL and SECRET_KEY for both."
)

_Opened = TypeVar("_Opened")
_T = TypeVar("_T")


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


def run_with_stores(use: Callable[[Stores], Awaitable[_T]], settings: Settings | None = None) -> _T:
    """Return the result of ``use``, or end the command with what is wrong with Redis.

    Without ``settings``, those of the environment, which must have a Redis. Raises SettingsError.
    """
    settings = settings or settings_with_redis()
    context = open_stores(settings, Metrics(), webhook_clients=make_endpoints(settings.clients))
    return run_with(context, use, settings)


def run_with(
    context: AbstractAsyncContextManager[_Opened], use: Callable[[_Opened], Awaitable[_T]], settings: Settings
) -> _T:
    """Return the result of ``use`` in a context, or end the command with what is wrong with Redis."""
    logging.disable()  # commands report their failures themselves

    async def run() -> _T:
        async with context as opened:
            return await use(opened)

    try:
        return asyncio.run(run())
    except StoreUnavailable as error:
        raise fail(_why_redis_failed(settings, error)) from None


def _why_redis_failed(settings: Settings, error: StoreUnavailable) -> str:
    """Return what ``doctor`` finds wrong with Redis after an error, or else the text of the error."""
    if error.reason is StoreFailure.ACCESS_DENIED and isinstance(error.__cause__, ResponseError):
        return "Redis refused: its user lacks a right. docs/operations.md has those that commands need."
    timeout, prefix = settings.redis.timeout_seconds, settings.redis.key_prefix

    async def check(stores: Stores) -> list[Finding]:
        of_cluster = await check_cluster(stores.redis, timeout=timeout, prefix=prefix)
        return of_cluster or await check_redis(stores.redis, timeout=timeout, prefix=prefix)

    found = run_with_stores(check, settings)
    return "\n".join(f"{one.message}. {one.advice}" for one in found if one.result is Result.WRONG) or detail_of(error)
