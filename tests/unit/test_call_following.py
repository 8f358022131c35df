"""CallWatcher: calls are followed until their outcome is final, and an error with one does not affect the others."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

import pytest

from app.verification.call_following import MAX_ATTEMPTS, CallWatcher, DueCall
from app.verification.errors import ProviderUnavailable, StoreUnavailable
from app.verification.ports import CallId

SECOND = timedelta(seconds=1)
FIRST, SECOND_CALL, THIRD = (CallId("vrf_0a11b22c33d44e55f667788", call_number) for call_number in (1, 2, 3))


class FakeQueue:
    """Return the calls that are ``due``, and record which were finished and which are to be retried."""

    def __init__(self, *due: DueCall) -> None:
        self.due = list(due)
        self.is_available = True
        self.finished: list[CallId] = []
        self.retried: dict[CallId, timedelta] = {}

    async def schedule(self, name: CallId, delay: timedelta) -> None:
        self.due.append(DueCall(name, 1))

    async def claim(self, most: int) -> Sequence[DueCall]:
        if not self.is_available:
            raise StoreUnavailable
        claimed, self.due = self.due[:most], self.due[most:]
        return claimed

    async def retry(self, call: DueCall, delay: timedelta) -> None:
        self.retried[call.call_id] = delay

    async def done(self, name: CallId) -> None:
        self.finished.append(name)


class FakeFollow:
    """Return or raise the given result of each call: ``call_1=True``."""

    def __init__(self, **results: bool | Exception) -> None:
        self.results = results
        self.followed: list[CallId] = []
        self.at_once = self.most_at_once = 0

    async def __call__(self, name: CallId) -> bool:
        self.followed.append(name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        result = self.results.get(f"call_{name.call_number}", True)
        if isinstance(result, Exception):
            raise result
        return result


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


async def test_a_call_with_a_final_outcome_leaves_the_queue() -> None:
    queue = FakeQueue(DueCall(FIRST, 1))

    await CallWatcher(queue, FakeFollow(call_1=True)).step()
    assert (queue.finished, queue.retried) == ([FIRST], {})


@pytest.mark.parametrize(("attempt", "pause"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 15), (6, 15), (MAX_ATTEMPTS, 15)])
async def test_a_call_in_progress_is_followed_again_after_growing_pauses(attempt: int, pause: int) -> None:
    queue = FakeQueue(DueCall(FIRST, attempt))

    await CallWatcher(queue, FakeFollow(call_1=False)).step()
    assert queue.finished == []
    assert 0.8 * pause * SECOND <= queue.retried[FIRST] <= 1.2 * pause * SECOND


async def test_pauses_are_jittered_so_that_calls_placed_together_spread_out() -> None:
    names = [CallId("vrf_0a11b22c33d44e55f667788", call_number) for call_number in range(1, 21)]
    queue = FakeQueue(*(DueCall(name, 3) for name in names))
    follow = FakeFollow(**{f"call_{name.call_number}": False for name in names})

    watcher = CallWatcher(queue, follow)
    for _ in range(4):
        await watcher.step()
    assert len(set(queue.retried.values())) > 10


async def test_a_step_follows_calls_concurrently_up_to_its_maximum() -> None:
    queue = FakeQueue(*(DueCall(CallId("vrf_0a11b22c33d44e55f667788", call_number), 1) for call_number in range(9)))
    follow = FakeFollow()

    await CallWatcher(queue, follow).step()
    assert (follow.most_at_once, len(follow.followed), len(queue.due)) == (5, 5, 4)


async def test_the_next_step_comes_sooner_when_calls_were_due() -> None:
    watcher = CallWatcher(FakeQueue(DueCall(FIRST, 1)), FakeFollow())

    busy, idle = await watcher.step(), await watcher.step()
    assert timedelta(0) < busy < idle <= SECOND


async def test_a_call_whose_lookup_failed_is_retried_after_a_longer_pause(caplog: pytest.LogCaptureFixture) -> None:
    queue = FakeQueue(DueCall(FIRST, 1), DueCall(SECOND_CALL, 1))
    follow = FakeFollow(call_1=ProviderUnavailable(retry_after=5), call_2=True)

    await CallWatcher(queue, follow).step()
    assert queue.finished == [SECOND_CALL]
    assert queue.retried[FIRST] > 20 * SECOND
    assert events(caplog) == ["call.lookup_failed"]
    assert caplog.records[0].exc_info is None


async def test_an_unexpected_exception_for_one_call_is_logged_and_the_others_are_followed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = FakeQueue(DueCall(FIRST, 1), DueCall(SECOND_CALL, 1), DueCall(THIRD, 1))
    follow = FakeFollow(call_1=True, call_2=ZeroDivisionError(), call_3=True)

    await CallWatcher(queue, follow).step()
    assert queue.finished == [FIRST, THIRD]
    assert list(queue.retried) == [SECOND_CALL]
    assert events(caplog) == ["call.follow_failed"]
    assert caplog.records[0].exc_info


async def test_a_call_whose_following_times_out_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    queue = FakeQueue(DueCall(FIRST, 1))

    async def hang(_: CallId) -> bool:
        await asyncio.Event().wait()
        return True

    await CallWatcher(queue, hang, timeout=timedelta(milliseconds=10)).step()
    assert list(queue.retried) == [FIRST]
    assert events(caplog) == ["call.follow_failed"]


async def test_when_the_queue_is_unavailable_the_step_raises_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    queue = FakeQueue(DueCall(FIRST, 1))
    queue.is_available = False

    with pytest.raises(StoreUnavailable):
        await CallWatcher(queue, FakeFollow()).step()
    assert events(caplog) == []


async def test_a_call_that_could_not_be_stored_stays_claimed_until_its_lease_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = FakeQueue(DueCall(FIRST, 1), DueCall(SECOND_CALL, 1))

    with pytest.raises(StoreUnavailable):
        await CallWatcher(queue, FakeFollow(call_1=StoreUnavailable(), call_2=True)).step()
    assert (queue.finished, queue.retried) == ([SECOND_CALL], {})
    assert events(caplog) == []


async def test_a_call_leaves_the_queue_after_too_many_attempts(caplog: pytest.LogCaptureFixture) -> None:
    queue, follow = FakeQueue(DueCall(FIRST, MAX_ATTEMPTS + 1)), FakeFollow(call_1=False)

    with caplog.at_level(logging.WARNING):
        await CallWatcher(queue, follow).step()
    assert (follow.followed, queue.finished, queue.retried) == ([], [FIRST], {})
    assert events(caplog) == ["call.given_up"]


async def test_a_call_is_followed_for_the_whole_lifetime_of_a_verification() -> None:
    """With any jitter."""
    queue, followed_for = FakeQueue(), timedelta(0)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        queue.due = [DueCall(FIRST, attempt)]
        await CallWatcher(queue, FakeFollow(call_1=False)).step()
        followed_for += queue.retried[FIRST]

    assert followed_for > timedelta(minutes=5)


async def test_canceling_a_step_cancels_the_calls_it_follows() -> None:
    ended: list[CallId] = []
    begun = asyncio.Event()

    async def hang(name: CallId) -> bool:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)
        return True

    queue = FakeQueue(DueCall(FIRST, 1))
    task = asyncio.create_task(CallWatcher(queue, hang).step())
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert (ended, queue.finished, queue.retried) == ([FIRST], [], {})
