"""Makes several requests to the store in one round trip."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any


async def in_one_round_trip(first: Awaitable[Any], *others: Awaitable[Any]) -> list[Any]:
    """Wait for all, and return the results and the exceptions in order, as ``asyncio.gather`` does if it is asked to.

    The first runs in the task of the caller, before the others: a task costs more than most of what these do.
    """
    if not others:
        return [await _result(first)]
    rest = asyncio.gather(*others, return_exceptions=True)
    try:
        return [await _result(first), *await rest]
    except asyncio.CancelledError:
        rest.cancel()
        with suppress(asyncio.CancelledError):
            await rest
        raise


async def _result(awaitable: Awaitable[Any]) -> Any:  # noqa: ANN401 - whatever it returns
    try:
        return await awaitable
    except Exception as error:  # noqa: BLE001 - the caller sees to it
        return error
