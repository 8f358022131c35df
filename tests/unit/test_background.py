"""Background steps: each is repeated despite errors, and all of them end within the grace period."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import timedelta

import pytest

from app.background import Background, Step
from app.verification.errors import StoreUnavailable
from tests.waiting import PATIENCE, until

AT_ONCE, LONG, MOMENT = timedelta(0), timedelta(hours=1), timedelta(milliseconds=1)


class Steps:
    """A step that raises each of ``failures`` in turn, and then succeeds."""

    def __init__(self, *failures: BaseException, pause: timedelta = MOMENT) -> None:
        self.failures = list(failures)
        self.pause = pause
        self.count = 0

    async def __call__(self) -> timedelta:
        self.count += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.pause


def background_of(steps: Mapping[str, Step], **pauses: timedelta) -> Background:
    background = Background(**pauses)
    for name, step in steps.items():
        background.add(name, step)
    return background


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.message, vars(record)["step"]) for record in caplog.records]


async def test_every_step_is_repeated_until_the_context_is_closed() -> None:
    calls, balance = Steps(), Steps()
    async with background_of({"calls": calls, "balance": balance}):
        await until(lambda: calls.count > 3 and balance.count > 3)
    after = calls.count, balance.count

    await asyncio.sleep(0.01)
    assert (calls.count, balance.count) == after


async def test_a_step_is_repeated_after_the_pause_that_it_returned() -> None:
    often, once = Steps(), Steps(pause=LONG)
    async with background_of({"often": often, "once": once}):
        await until(lambda: often.count > 5)
        assert once.count == 1


async def test_an_unexpected_exception_is_logged_and_the_step_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    buggy, other = Steps(ZeroDivisionError(), asyncio.CancelledError()), Steps()
    async with background_of({"buggy": buggy, "other": other}, first_pause=MOMENT):
        await until(lambda: buggy.count > 3 and other.count > 1)

    assert events(caplog) == [("background.step_failed", "buggy")] * 2
    assert all(record.exc_info for record in caplog.records)


async def test_an_outage_of_the_store_is_logged_once_when_it_begins_and_once_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "app.background")
    step = Steps(*(StoreUnavailable() for _ in range(5)))
    async with background_of({"calls": step}, first_pause=MOMENT):
        await until(lambda: step.count > 6)
        step.failures = [StoreUnavailable()]
        after = step.count + 2
        await until(lambda: step.count > after)

    assert events(caplog) == [("background.store_unavailable", "calls"), ("background.store_available", "calls")] * 2
    assert not any(record.exc_info for record in caplog.records)


async def test_pauses_after_failures_grow_exponentially_up_to_a_maximum() -> None:
    background = background_of({}, first_pause=timedelta(seconds=1), longest_pause=timedelta(seconds=30))

    for failures, longest in ((1, 1), (2, 2), (3, 4), (5, 16), (6, 30), (7, 30), (100_000, 30)):
        pauses = {background._pause_after(failures).total_seconds() for _ in range(50)}
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


async def test_closing_cancels_running_steps_at_once() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> timedelta:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return AT_ONCE

    before = asyncio.all_tasks()
    steps: dict[str, Step] = {"hang": hang, "asleep": Steps(pause=LONG)}
    async with asyncio.timeout(PATIENCE), background_of(steps, grace=LONG):
        await begun.wait()

    assert ended.is_set()
    assert asyncio.all_tasks() == before


async def test_a_step_that_swallows_its_cancellation_is_not_repeated() -> None:
    begun = asyncio.Event()

    async def stubborn() -> timedelta:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return LONG
        return AT_ONCE

    before = asyncio.all_tasks()
    async with background_of({"stubborn": stubborn}):
        await begun.wait()
    assert asyncio.all_tasks() == before


async def test_closing_waits_for_a_stuck_step_no_longer_than_the_grace_period(caplog: pytest.LogCaptureFixture) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def stuck() -> timedelta:
        begun.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return AT_ONCE

    before = asyncio.all_tasks()
    async with background_of({"stuck": stuck, "fine": Steps()}, grace=timedelta(milliseconds=20)):
        await begun.wait()

    assert [(record.message, vars(record)["steps"]) for record in caplog.records] == [("background.stuck", ["stuck"])]
    release.set()
    await until(lambda: asyncio.all_tasks() == before)


async def test_an_error_in_the_context_propagates_and_ends_the_steps() -> None:
    before = asyncio.all_tasks()

    with pytest.raises(LookupError):
        async with background_of({"calls": Steps()}):
            raise LookupError
    assert asyncio.all_tasks() == before


async def test_the_lag_is_the_time_since_a_step_last_succeeded() -> None:
    fine, failing = Steps(), Steps(*(ZeroDivisionError() for _ in range(1000)))
    background = background_of({"fine": fine, "failing": failing}, first_pause=MOMENT, longest_pause=MOMENT)
    assert background.gauges() == {}

    async with background:
        await until(lambda: background.gauges()["failing"] > 0.05 > background.gauges()["fine"])
        failing.failures.clear()
        await until(lambda: background.gauges()["failing"] < 0.05)


async def test_a_background_without_steps_can_be_opened_and_closed() -> None:
    async with background_of({}) as background:
        assert background.gauges() == {}
