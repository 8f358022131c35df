"""Deferred writes: retried in the background until they succeed, also when their caller was canceled."""

import asyncio
from contextlib import suppress

import pytest

from app.verification.errors import StoreUnavailable, VerificationNotFound
from app.verification.store_requests import DeferredWrites

MOMENT = 0.01


class Write:
    """A write that raises ``failure`` as long as one is set."""

    def __init__(self, *, failure: Exception | None) -> None:
        self.failure = failure
        self.count = 0
        self.begun = asyncio.Event()

    async def __call__(self) -> None:
        self.count += 1
        self.begun.set()
        await asyncio.sleep(0)
        if self.failure:
            raise self.failure


async def test_a_write_that_failed_is_retried_until_the_store_is_available_again() -> None:
    write, deferred = Write(failure=StoreUnavailable()), DeferredWrites(pauses=(MOMENT, MOMENT))
    await deferred.write(write)
    await asyncio.sleep(20 * MOMENT)

    write.failure = None
    away = write.count
    await asyncio.sleep(10 * MOMENT)

    assert away > 3
    assert write.count == away + 1
    await deferred.aclose()


async def test_a_write_is_given_up_after_the_time_limit() -> None:
    write = Write(failure=StoreUnavailable())
    deferred = DeferredWrites(pauses=(MOMENT, MOMENT), timeout=5 * MOMENT)
    deferred.write_later(write)
    await asyncio.sleep(20 * MOMENT)

    given_up = write.count
    await asyncio.sleep(5 * MOMENT)

    assert write.count == given_up
    await deferred.aclose()


async def test_a_write_to_a_missing_verification_is_repeated_only_after_the_configured_pauses() -> None:
    write, deferred = Write(failure=VerificationNotFound()), DeferredWrites(pauses=(MOMENT, MOMENT))
    await deferred.write(write)
    await asyncio.sleep(20 * MOMENT)

    assert write.count == 3
    await deferred.aclose()


async def test_shutdown_does_not_wait_for_an_unavailable_store() -> None:
    write, deferred = Write(failure=StoreUnavailable()), DeferredWrites(pauses=(60, 60))
    await deferred.write(write)

    async with asyncio.timeout(1):
        await deferred.aclose()

    assert write.count == 3


@pytest.mark.parametrize("turns", [0, 1])
async def test_a_write_whose_caller_is_canceled_is_still_retried(turns: int) -> None:
    write, deferred = Write(failure=StoreUnavailable()), DeferredWrites(pauses=(MOMENT, MOMENT))
    caller = asyncio.create_task(deferred.write(write))
    await write.begun.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    caller.cancel()
    with suppress(asyncio.CancelledError):
        await caller

    write.failure = None
    await asyncio.sleep(10 * MOMENT)

    assert write.count > 1
    await deferred.aclose()
