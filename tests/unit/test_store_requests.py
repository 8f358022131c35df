"""Requests to the store: side by side in one round trip, within a deadline, or retried until they succeed."""

import asyncio
from contextlib import suppress

import pytest

from app.verification.errors import StoreFailure, StoreUnavailable, VerificationNotFound
from app.verification.store_requests import DeferredWrites, StoreDeadline, in_one_round_trip
from tests.waiting import PATIENCE, until

MOMENT = 0.01


class Write:
    """A write that raises the ``failure`` that was set when it began."""

    def __init__(self, *, failure: Exception | None) -> None:
        self.failure = failure
        self.count = 0
        self.begun = asyncio.Event()

    async def __call__(self) -> None:
        self.count += 1
        self.begun.set()
        failure = self.failure
        await asyncio.sleep(0)
        if failure:
            raise failure


class Requests:
    """Requests that wait for replies, and what happened to each."""

    def __init__(self) -> None:
        self.replies: dict[str, asyncio.Future[str]] = {}
        self.events: list[str] = []

    async def ask(self, *names: str) -> str:
        """Wait for one reply after the other, and return the last."""
        try:
            for name in names:
                self.events.append(f"{name} asked")
                self.replies[name] = asyncio.get_running_loop().create_future()
                reply = await self.replies[name]
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.events.append(f"{name} canceled")
            raise
        return reply


async def nothing_runs() -> None:
    """Wait until no task is left but that of the test."""
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


async def fail(error: BaseException, *, at_once: bool) -> None:
    if not at_once:
        await asyncio.sleep(0)
    raise error


async def test_requests_of_one_round_trip_are_made_before_any_reply_and_their_results_are_in_order() -> None:
    requests = Requests()
    asking = asyncio.create_task(in_one_round_trip(requests.ask("a"), requests.ask("b"), requests.ask("c")))
    await settle()
    for name in "cab":
        requests.replies[name].set_result(name.upper())
        await asyncio.sleep(0)

    assert await asking == ["A", "B", "C"]


async def test_a_request_that_waits_several_times_keeps_no_other_from_going_on() -> None:
    requests = Requests()
    asking = asyncio.create_task(in_one_round_trip(requests.ask("a1", "a2", "a3"), requests.ask("b1", "b2")))
    for name in ("a1", "b1", "a2", "b2", "a3"):
        await settle()
        requests.replies[name].set_result(name)

    assert await asking == ["a3", "b2"]


async def test_two_requests_may_wait_for_the_same_reply() -> None:
    reply: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def ask() -> str:
        return await reply

    asking = asyncio.create_task(in_one_round_trip(ask(), ask()))
    other = asyncio.create_task(ask())
    await asyncio.sleep(0)
    reply.set_result("both")

    assert (await asking, await other) == (["both", "both"], "both")


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_failure_of_one_request_is_a_result_and_the_others_finish(*, at_once: bool) -> None:
    requests, error = Requests(), StoreUnavailable()
    asking = asyncio.create_task(in_one_round_trip(fail(error, at_once=at_once), requests.ask("b", "c")))
    await settle()
    requests.replies["b"].set_result("b")
    await settle()
    requests.replies["c"].set_exception(KeyError("bug"))
    first, second = await asking

    assert first is error
    assert isinstance(second, KeyError)


@pytest.mark.parametrize("answered", [(), ("a",), ("b",)])
async def test_when_the_caller_is_canceled_each_request_that_waits_is_canceled_and_may_clean_up(
    answered: tuple[str, ...],
) -> None:
    requests = Requests()
    asking = asyncio.create_task(in_one_round_trip(requests.ask("a", "a2"), requests.ask("b", "b2")))
    await settle()
    for name in answered:
        requests.replies[name].set_result(name)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert sorted(event for event in requests.events if event.endswith("canceled")) == ["a canceled", "b canceled"]


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_lone_request_has_its_result_or_its_failure_in_the_list(*, at_once: bool) -> None:
    requests = Requests()
    asking = asyncio.create_task(in_one_round_trip(requests.ask("a")))
    await settle()
    requests.replies["a"].set_result("A")

    assert await asking == ["A"]
    error = StoreUnavailable()
    assert await in_one_round_trip(fail(error, at_once=at_once)) == [error]
    assert await in_one_round_trip() == []


async def test_a_lone_request_whose_caller_is_canceled_may_clean_up() -> None:
    requests = Requests()
    asking = asyncio.create_task(in_one_round_trip(requests.ask("a")))
    await settle()
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert requests.events == ["a asked", "a canceled"]


async def test_waits_for_the_store_that_take_too_long_together_make_it_unavailable() -> None:
    requests = Requests()
    with pytest.raises(StoreUnavailable) as caught:
        async with StoreDeadline(MOMENT):
            await in_one_round_trip(requests.ask("a"), requests.ask("b"))

    assert caught.value.reason is StoreFailure.TIMEOUT
    assert requests.events == ["a asked", "b asked", "a canceled", "b canceled"]


async def test_without_writes_nothing_runs_in_the_background() -> None:
    deferred = DeferredWrites()

    await deferred.write()
    deferred.write_later()

    assert len(asyncio.all_tasks()) == 1  # this test


async def test_a_write_that_failed_is_retried_until_the_store_is_available_again() -> None:
    write, deferred = Write(failure=StoreUnavailable()), DeferredWrites(pauses=(MOMENT, MOMENT))
    await deferred.write(write)
    await until(lambda: write.count > 3)

    write.failure = None
    away = write.count
    await nothing_runs()

    assert write.count == away + 1


async def test_a_write_is_given_up_after_the_time_limit() -> None:
    write = Write(failure=StoreUnavailable())
    deferred = DeferredWrites(pauses=(MOMENT, MOMENT), timeout=5 * MOMENT)
    deferred.write_later(write)
    await nothing_runs()

    assert write.count >= 3


async def test_a_write_to_a_missing_verification_is_repeated_only_after_the_configured_pauses() -> None:
    write, deferred = Write(failure=VerificationNotFound()), DeferredWrites(pauses=(MOMENT, MOMENT))
    await deferred.write(write)
    await nothing_runs()

    assert write.count == 3


async def test_shutdown_does_not_wait_for_an_unavailable_store() -> None:
    write, deferred = Write(failure=StoreUnavailable()), DeferredWrites(pauses=(60, 60))
    await deferred.write(write)

    async with asyncio.timeout(PATIENCE):
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
    await nothing_runs()

    assert write.count > 1
