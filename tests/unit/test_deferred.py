"""Writes in the background: made until the store takes them, also when whoever began them has gone."""

import asyncio
from contextlib import suppress

import pytest

from app.verification.deferred import DeferredWrites
from app.verification.errors import StoreUnavailable, VerificationNotFound

MOMENT = 0.01


class Write:
    """A write that fails as it is told to, as long as it is told to."""

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


async def test_what_the_store_did_not_take_is_written_however_long_it_was_away() -> None:
    write, deferred = Write(failure=StoreUnavailable()), DeferredWrites(pauses=(MOMENT, MOMENT))
    await deferred.write(write)
    await asyncio.sleep(20 * MOMENT)

    write.failure = None
    away = write.count
    await asyncio.sleep(10 * MOMENT)

    assert away > 3
    assert write.count == away + 1
    await deferred.aclose()


async def test_a_store_that_stays_away_is_given_up() -> None:
    write = Write(failure=StoreUnavailable())
    deferred = DeferredWrites(pauses=(MOMENT, MOMENT), timeout=5 * MOMENT)
    deferred.write_later(write)
    await asyncio.sleep(20 * MOMENT)

    given_up = write.count
    await asyncio.sleep(5 * MOMENT)

    assert write.count == given_up
    await deferred.aclose()


async def test_what_is_gone_is_not_asked_for_again_and_again() -> None:
    write, deferred = Write(failure=VerificationNotFound()), DeferredWrites(pauses=(MOMENT, MOMENT))
    await deferred.write(write)
    await asyncio.sleep(20 * MOMENT)

    assert write.count == 3
    await deferred.aclose()


async def test_a_service_that_stops_does_not_wait_for_a_store_that_is_away() -> None:
    write, deferred = Write(failure=StoreUnavailable()), DeferredWrites(pauses=(60, 60))
    await deferred.write(write)

    async with asyncio.timeout(1):
        await deferred.aclose()

    assert write.count == 3


@pytest.mark.parametrize("turns", [0, 1])
async def test_a_write_whose_caller_is_canceled_is_repeated_all_the_same(turns: int) -> None:
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
