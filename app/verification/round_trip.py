"""Makes several requests to the store in one round trip."""

import asyncio
from collections.abc import Awaitable
from typing import Any


async def in_one_round_trip(first: Awaitable[Any], *others: Awaitable[Any]) -> list[Any]:
    """Wait for all, and return the results and the exceptions in order, as ``asyncio.gather`` does if it is asked to.

    The first runs in the task of the caller, before the others: a task costs more than most of what these do.
    """
    tasks = [asyncio.ensure_future(other) for other in others]
    try:
        return [await _result(awaitable) for awaitable in (first, *tasks)]
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _result(awaitable: Awaitable[Any]) -> Any:  # noqa: ANN401 - whatever it returns
    try:
        return await awaitable
    except Exception as error:  # noqa: BLE001 - the caller sees to it
        return error
