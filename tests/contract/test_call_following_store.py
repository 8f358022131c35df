"""The queue of calls to follow: each call has one claimer, none is lost, and the rate of lookups is limited."""

import asyncio
import logging
from collections.abc import Iterable
from datetime import timedelta

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from app.store.call_following import _ATTEMPTS, _DUE, _POLLS, RedisCallQueue
from app.store.connection import connect
from app.store.scripts import ScriptRunner
from app.verification.call_following import CallQueue, DueCall
from app.verification.errors import StoreUnavailable
from app.verification.ports import CallId
from tests.ageing import age
from tests.keys import stored

DUE, ATTEMPTS, POLLS = map(stored, (_DUE, _ATTEMPTS, _POLLS))

NOW, SECOND, HOUR = timedelta(0), timedelta(seconds=1), timedelta(hours=1)
LEASE = timedelta(seconds=30)
MARGIN = timedelta(seconds=10)  # no pause of a busy machine is so long
CALL = CallId("vrf_0a11b22c33d44e55f667788", 1)


def make_queue(redis: Redis, per_second: int = 1000) -> RedisCallQueue:
    return RedisCallQueue(ScriptRunner(redis, timeout=5), per_second=per_second, lease=LEASE)


@pytest.fixture
def queue(redis: Redis) -> CallQueue:
    return make_queue(redis)


def calls(count: int) -> list[CallId]:
    return [CallId(f"vrf_0a1{number:020x}", 1 + number % 3) for number in range(count)]


async def schedule(queue: CallQueue, names: Iterable[CallId]) -> None:
    await asyncio.gather(*(queue.schedule(name, NOW) for name in names))


async def test_a_call_is_claimed_only_once_it_is_due(redis: Redis, queue: CallQueue) -> None:
    await queue.schedule(CALL, 5 * SECOND + MARGIN)
    await age(redis, 5 * SECOND)
    assert await queue.claim(10) == []

    await age(redis, MARGIN)
    assert await queue.claim(10) == [DueCall(CALL, 1)]


async def test_calls_are_claimed_in_order_of_their_due_time_up_to_the_maximum(redis: Redis, queue: CallQueue) -> None:
    names = calls(3)
    for name in names:
        await queue.schedule(name, NOW)
        await age(redis, SECOND)

    assert [call.call_id for call in await queue.claim(2)] == names[:2]
    assert [call.call_id for call in await queue.claim(2)] == names[2:]


async def test_of_a_hundred_concurrent_claims_each_call_is_claimed_once(redis: Redis) -> None:
    """From two instances of the service, so that not all commands are sent in one write."""
    names = calls(100)
    instances = [make_queue(redis) for _ in range(2)]
    await schedule(instances[0], names)

    claims = await asyncio.gather(*(instances[number % 2].claim(3) for number in range(100)))
    claimed = [call.call_id for claim in claims for call in claim]
    assert len(claimed) == 100
    assert set(claimed) == set(names)


async def test_a_call_is_claimed_again_when_its_lease_ends(redis: Redis, queue: CallQueue) -> None:
    await queue.schedule(CALL, NOW)
    await queue.claim(1)
    await age(redis, LEASE - MARGIN)
    assert await queue.claim(1) == []

    await age(redis, MARGIN)
    assert await queue.claim(1) == [DueCall(CALL, 2)]


async def test_a_finished_call_is_not_claimed_again(redis: Redis, queue: CallQueue) -> None:
    await queue.schedule(CALL, NOW)
    await queue.claim(1)
    for _ in range(2):
        await queue.done(CALL)

    await age(redis, LEASE)
    assert await queue.claim(1) == []
    assert set(await redis.keys()) <= {POLLS.encode()}


async def test_a_retried_call_is_claimed_after_its_delay_with_the_next_attempt(redis: Redis, queue: CallQueue) -> None:
    await queue.schedule(CALL, NOW)
    for attempt in range(1, 5):
        (call,) = await queue.claim(1)
        assert call == DueCall(CALL, attempt)
        await queue.retry(call, 8 * SECOND + MARGIN)
        await age(redis, 8 * SECOND)
        assert await queue.claim(1) == []
        await age(redis, MARGIN)


async def test_scheduling_a_call_again_changes_its_due_time_and_resets_its_attempts(
    redis: Redis, queue: CallQueue
) -> None:
    await queue.schedule(CALL, NOW)
    await queue.claim(1)
    await queue.schedule(CALL, MARGIN)
    assert await queue.claim(1) == []

    await age(redis, MARGIN)
    assert await queue.claim(1) == [DueCall(CALL, 1)]


@pytest.mark.parametrize("ended", ["done", "scheduled", "claimed"])
async def test_retrying_with_an_ended_claim_changes_nothing(redis: Redis, queue: CallQueue, ended: str) -> None:
    """A slow worker must not reschedule a call that another has finished, rescheduled or claimed."""
    await queue.schedule(CALL, NOW)
    (call,) = await queue.claim(1)
    match ended:
        case "done":
            await queue.done(CALL)
        case "scheduled":
            await queue.schedule(CALL, HOUR / 2)
        case "claimed":
            await age(redis, LEASE)
            assert await queue.claim(1)
    before = await redis.zrange(DUE, 0, -1, withscores=True)

    await queue.retry(call, NOW)
    assert await redis.zrange(DUE, 0, -1, withscores=True) == before


async def test_all_workers_together_claim_no_more_than_the_rate(redis: Redis) -> None:
    instances = [make_queue(redis, per_second=5) for _ in range(4)]
    await schedule(instances[0], calls(100))

    for second in range(3):
        claims = await asyncio.gather(*(instances[number % 4].claim(2) for number in range(100)))
        assert sum(map(len, claims)) == 5, second
        await age(redis, timedelta(milliseconds=100))
        assert await instances[0].claim(100) == []  # less than a second has passed
        await redis.pexpire(POLLS, 1000)  # the set lives for a second, and is aged twice within one here
        await age(redis, timedelta(milliseconds=900))


async def test_a_lowered_rate_applies_at_once(redis: Redis) -> None:
    """During a deployment some workers use the old rate and some the new one."""
    await schedule(make_queue(redis), calls(20))
    assert len(await make_queue(redis, per_second=10).claim(10)) == 10

    assert await make_queue(redis, per_second=5).claim(10) == []


async def test_every_key_has_a_ttl_of_an_hour_at_most(redis: Redis, queue: CallQueue) -> None:
    async def require_ttls(*names: str) -> None:
        assert {*await redis.keys()} - {POLLS.encode()} == {name.encode() for name in names}
        for name in names:
            assert 0 < await redis.pttl(name) <= HOUR.total_seconds() * 1000
        assert -1 != await redis.pttl(POLLS) <= 1000  # it lives for a second, and may be gone

    await queue.schedule(CALL, SECOND)
    await require_ttls(DUE)
    await age(redis, SECOND)
    (call,) = await queue.claim(1)
    await require_ttls(DUE, ATTEMPTS)
    await queue.retry(call, SECOND)
    await require_ttls(DUE, ATTEMPTS)


async def test_a_call_not_claimed_for_an_hour_is_dropped(
    redis: Redis, queue: CallQueue, caplog: pytest.LogCaptureFixture
) -> None:
    late = CallId(CALL.verification_id, 2)
    await queue.schedule(CALL, NOW)
    (call,) = await queue.claim(1)
    await queue.retry(call, NOW)
    await make_it_older_than_its_key(redis)
    await queue.schedule(late, NOW)
    # As if other workers had scheduled it too fast for it to be dropped there.
    await redis.zadd(DUE, {"vrf_0a11b22c33d44e55f667788:1": 1})
    await redis.hset(ATTEMPTS, "vrf_0a11b22c33d44e55f667788:1", 1)

    with caplog.at_level(logging.WARNING):
        assert await queue.claim(10) == [DueCall(late, 1)]
    assert [record.message for record in caplog.records] == ["call_queue.dropped"]
    assert await redis.hkeys(ATTEMPTS) == [b"vrf_0a11b22c33d44e55f667788:2"]


async def test_a_queue_without_claims_stops_growing(redis: Redis, queue: CallQueue) -> None:
    """Each scheduled call extends the life of the key, but calls older than an hour are still dropped."""
    old = calls(20)
    await schedule(queue, old[:10])
    await make_it_older_than_its_key(redis)
    await schedule(queue, old[10:])

    assert await redis.zcard(DUE) == 10


async def test_a_queue_keeps_no_more_calls_than_may_be_claimed_before_they_are_dropped(
    redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.call_following._MEMORY", timedelta(seconds=4))
    queue = make_queue(redis, per_second=5)

    with caplog.at_level(logging.WARNING):
        await schedule(queue, calls(21))
    assert [record.message for record in caplog.records] == ["call_queue.full"]
    assert await redis.zcard(DUE) == 20

    await queue.schedule(calls(1)[0], HOUR)  # one that it has may be scheduled anew
    await queue.done(calls(2)[1])
    await queue.schedule(CALL, NOW)
    assert len(caplog.records) == 1


async def make_it_older_than_its_key(redis: Redis) -> None:
    """Let an hour pass in which other calls extended the life of the keys."""
    for _ in range(2):
        await age(redis, HOUR / 2)
        for key in await redis.keys():
            await redis.pexpire(key, HOUR)


async def test_all_keys_are_in_one_cluster_slot() -> None:
    assert len({key_slot(name.encode()) for name in (DUE, ATTEMPTS, POLLS)}) == 1


async def test_claiming_without_redis_raises_store_unavailable() -> None:
    nowhere = connect("unix:///nonexistent/socket", timeout=0.1)
    queue = make_queue(nowhere)

    with pytest.raises(StoreUnavailable):
        await queue.claim(1)
    await nowhere.aclose()


async def test_a_call_that_is_retried_a_hundred_times_at_once_is_claimed_once(redis: Redis, queue: CallQueue) -> None:
    await queue.schedule(CALL, NOW)
    (claimed,) = await queue.claim(1)

    await asyncio.gather(*(queue.retry(claimed, NOW) for _ in range(100)))

    assert await queue.claim(100) == [DueCall(CALL, 2)]


async def test_a_hundred_calls_that_are_done_at_once_are_claimed_no_more(queue: CallQueue) -> None:
    names = calls(100)
    await schedule(queue, names)

    await asyncio.gather(*(queue.done(name) for name in names))

    assert await queue.claim(100) == []
