"""The webhook outbox in Redis: each event is in exactly one place, also with concurrent and crashed workers."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from app.store.connection import connect
from app.store.layout import RecordName, to_ms
from app.store.scripts import Argument, Script, ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import DONE, LEASE, TAKE, RedisOutbox
from app.verification.channels import Channel
from app.verification.errors import StoreUnavailable, VerificationNotFound
from app.verification.model import CallState, CallStatus, Status
from app.verification.phone import Phone
from app.verification.ports import CallId, CallUpdate, CodeCheck, NewCall
from app.verification.webhooks import Delivery
from tests.ageing import age
from tests.keys import stored
from tests.limiters import make_limiter
from tests.policies import make_policy
from tests.starting import start
from tests.waiting import PATIENCE, timing
from tests.webhook_events import (
    BUCKET,
    DEAD,
    DEAD_EVENTS,
    DUE,
    SWEPT,
    VERIFICATION_ID,
    WAITING,
    add_events,
    add_expiries,
    make_due,
    now_ms,
    outbox_key,
    retries_key,
    sizes,
)

Interruption = Callable[[], Awaitable[None]] | None
AT_ONCE = timedelta(0)
CLAIM_AFTER = timedelta(minutes=1)
HOUR = timedelta(hours=1)
MANY_BUCKETS = [f"{number:03x}" for number in range(0, 4096, 41)]  # 100


def make_outbox(redis: Redis, *, claim_after: timedelta = timedelta(minutes=1), most_dead: int = 10_000) -> RedisOutbox:
    runner = ScriptRunner(redis, timeout=20)
    return RedisOutbox(runner, clients={"shop"}, claim_after=claim_after, most_dead=most_dead)


@pytest.fixture
def outbox(redis: Redis) -> RedisOutbox:
    return make_outbox(redis)


@pytest.fixture
def store(redis: Redis, outbox: RedisOutbox) -> RedisVerificationStore:
    return RedisVerificationStore(
        ScriptRunner(redis, timeout=5), phone_key=b"k" * 32, outbox=outbox, limits=make_limiter(redis, key=b"k" * 32)
    )


async def all_have_a_ttl(redis: Redis) -> bool:
    return all([await redis.pttl(key) > 0 for key in await redis.keys()])


def ids(deliveries: Iterable[Delivery]) -> list[str]:
    return [delivery.event.id for delivery in deliveries]


async def take_at_once(redis: Redis, most: int, *, expected: int) -> list[Delivery]:
    """Take a hundred times at once, by ten workers, until all expected events are taken, and once more."""
    workers = [make_outbox(redis) for _ in range(10)]
    taken: list[Delivery] = []
    is_complete = False
    async with asyncio.timeout(PATIENCE), timing() as seconds:
        while not is_complete:
            is_complete = len(taken) >= expected
            for part in await asyncio.gather(*[worker.take(most) for worker in workers for _ in range(10)]):
                taken += part
        assert seconds() < 9  # without waiting for a lease to end
    return taken


async def test_an_entry_is_read_as_an_event(redis: Redis, outbox: RedisOutbox) -> None:
    (event_id,) = await add_events(redis)

    (delivery,) = await outbox.take(10)

    event = delivery.event
    assert (delivery.attempts, delivery.error) == (0, "")
    assert (event.id, event.type, event.client) == (event_id, "verification.created", "shop")
    assert (event.verification_id, event.purpose, event.channel) == (VERIFICATION_ID, "login", "voice")
    assert (event.phone, event.status, event.call_status) == (Phone("+79001234567"), "pending", "initiated")
    assert event.at.isoformat() == "2026-01-31T09:00:00.123000+00:00"


@pytest.mark.parametrize("reference", ["order-1024", "a|b||c", "50% | %7C%25 :", "Заказ № 7: «да»"])
async def test_an_event_has_the_reference_until_it_is_delivered(
    redis: Redis, store: RedisVerificationStore, outbox: RedisOutbox, reference: str
) -> None:
    """As a new event, one to be retried, a dead letter and one that is sent again; also as that of an expiry."""
    verification = (await start(store, replace(CALL, reference=reference), make_policy())).verification
    await store.record_call(verification, 1, PLACED)
    (delivery,) = await outbox.take(10)
    await outbox.set_aside(delivery, attempts=1, error="status 500", pause=AT_ONCE)
    (retried,) = await outbox.take(10)
    await outbox.set_aside(retried, attempts=7, error="status 500", pause=None)
    (dead,) = await outbox.dead_letters()
    await outbox.resend(delivery.event.id)
    (resent,) = await outbox.take(10)
    await outbox.done(resent)
    await age(redis, make_policy().lifetime)
    (expired,) = await sweep(outbox)

    for event in (delivery.event, retried.event, dead.event, resent.event, expired.event):
        assert (event.reference, event.purpose, event.phone) == (reference, "login", CALL.phone)
    await outbox.done(expired)
    assert await sizes(redis) == (0, 0, 0, 0)


async def test_an_event_without_a_call_has_no_call_status(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis, call="")

    assert [delivery.event.call_status for delivery in await outbox.take(1)] == [None]


async def test_taking_from_an_empty_outbox_leaves_nothing_but_the_place_of_the_sweep(
    redis: Redis, outbox: RedisOutbox
) -> None:
    assert await outbox.take(10) == []
    assert await redis.keys() == [SWEPT.encode()]


async def test_of_a_hundred_concurrent_takes_each_event_is_taken_once(redis: Redis) -> None:
    added = await add_events(redis, 200, buckets=MANY_BUCKETS)

    taken = await take_at_once(redis, 3, expected=200)

    assert sorted(ids(taken)) == sorted(added)


async def test_no_more_events_are_taken_than_requested(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis, 5)

    assert [len(await outbox.take(2)) for _ in range(4)] == [2, 2, 1, 0]


async def test_one_take_empties_a_bucket_that_has_more_than_its_share(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis, 50)
    await add_events(redis, 99, buckets=MANY_BUCKETS[1:])

    assert len(await outbox.take(256)) == 149


async def test_a_delivered_event_is_deleted(redis: Redis) -> None:
    reclaiming = make_outbox(redis, claim_after=AT_ONCE)
    await add_events(redis)
    (delivery,) = await reclaiming.take(1)

    await reclaiming.done(delivery)
    await reclaiming.done(delivery)

    assert await sizes(redis) == (0, 0, 0, 0)
    assert await reclaiming.take(1) == []


async def test_an_event_of_a_crashed_worker_is_taken_again_after_claim_after(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis)
    (held,) = await make_outbox(redis).take(1)

    assert await outbox.take(1) == []
    await age(redis, CLAIM_AFTER)
    assert await outbox.take(1) == [held]


async def test_of_a_hundred_concurrent_takes_one_gets_the_event_of_a_crashed_worker(redis: Redis) -> None:
    await add_events(redis)
    await make_outbox(redis).take(1)
    await age(redis, CLAIM_AFTER)

    assert len(await take_at_once(redis, 1, expected=1)) == 1


async def test_a_bucket_of_a_worker_that_dies_before_it_looks_is_leased_again(
    redis: Redis, outbox: RedisOutbox
) -> None:
    (event_id,) = await add_events(redis)
    dying = make_outbox(redis)
    _, leased = await dying._lease(1)
    assert leased == [BUCKET]

    assert await outbox.take(1) == []
    await age(redis, timedelta(seconds=11))
    assert ids(await outbox.take(1)) == [event_id]


class Interrupted(ScriptRunner):
    """Runs ``interruption`` before or after each run of ``script``, as another process might."""

    def __init__(
        self, redis: Redis, script: Script, *, before: Interruption = None, after: Interruption = None
    ) -> None:
        super().__init__(redis, timeout=5)
        self.script, self.before, self.after = script, before, after

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:  # noqa: ANN401 - as inherited
        if script is self.script and self.before:
            await self.before()
        reply = await super().run(script, keys, arguments)
        if script is self.script and self.after:
            await self.after()
        return reply


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_bucket_that_changes_during_a_look_stays_due(redis: Redis, outbox: RedisOutbox, moment: str) -> None:
    """The look may have come before or after the change; only the first is a miss."""

    async def change() -> None:
        await add_events(redis)
        outbox.note_change(BUCKET)
        await outbox.flush()

    looking = RedisOutbox(Interrupted(redis, TAKE, **{moment: change}))
    looking.note_change(BUCKET)

    seen = len(await looking.take(1)) + len(await outbox.take(1))
    assert seen == 1
    assert (await redis.zcard(DUE)) == 1


async def test_reclaimed_and_new_events_together_stay_within_the_count(redis: Redis) -> None:
    reclaiming = make_outbox(redis)
    await add_events(redis, 3)
    await reclaiming.take(2)
    await age(redis, CLAIM_AFTER)

    assert len(await reclaiming.take(2)) == 2
    await age(redis, CLAIM_AFTER)
    assert len(await reclaiming.take(5)) == 3


async def test_the_outbox_works_after_redis_was_flushed(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis)
    (delivery,) = await outbox.take(1)
    await redis.flushall()

    await outbox.done(delivery)
    assert await outbox.set_aside(delivery, attempts=1, error="status 500", pause=AT_ONCE)
    assert await redis.keys() == []
    await add_events(redis)
    assert len(await outbox.take(1)) == 1


async def sweep(outbox: RedisOutbox) -> list[Delivery]:
    """Take as often as a sweep over all buckets needs."""
    return [delivery for _ in range(16) for delivery in await outbox.take(256)]


async def test_an_event_whose_bucket_is_not_in_the_index_is_found_within_a_minute(
    redis: Redis, outbox: RedisOutbox
) -> None:
    """The process that made the change died before it wrote which bucket changed."""
    await sweep(outbox)
    added = await add_events(redis, 100, buckets=MANY_BUCKETS)
    await redis.delete(DUE)
    await redis.decrby(SWEPT, 4096)  # the time of a sweep passes

    assert sorted(ids(await sweep(outbox))) == sorted(added)


async def test_an_event_is_found_by_the_sweep_although_its_bucket_is_due_only_later(
    redis: Redis, outbox: RedisOutbox
) -> None:
    (event_id,) = await add_events(redis)
    await make_due(redis, BUCKET, due=now_ms() + 3_600_000)

    assert ids(await sweep(outbox)) == [event_id]


async def test_a_sweep_visits_each_bucket_once_whatever_the_number_of_workers(redis: Redis) -> None:
    workers = [make_outbox(redis) for _ in range(4)]
    began = time.time()
    leases = [buckets for _ in range(6) for _, buckets in await asyncio.gather(*[it._lease(256) for it in workers])]

    visits = Counter(bucket for lease in leases for bucket in lease)
    assert len(visits) == 4096
    assert max(map(len, leases)) == 256
    assert sum(visits.values()) - 4096 <= (time.time() - began) * 4096 / 45 + 2


async def test_after_a_sweep_an_idle_worker_looks_at_few_buckets(redis: Redis, outbox: RedisOutbox) -> None:
    began, looks = time.time(), 0
    await sweep(outbox)
    for _ in range(20):
        looks += len((await outbox._lease(256))[1])

    assert looks <= (time.time() - began) * 4096 / 45 + 1


async def test_a_retried_event_is_taken_when_due_with_the_same_id(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis)
    (first,) = await outbox.take(1)

    assert await outbox.set_aside(first, attempts=1, error="status 500", pause=HOUR)
    assert await outbox.take(1) == []
    assert await sizes(redis) == (0, 1, 0, 0)
    await age(redis, HOUR)

    (second,) = await outbox.take(1)
    assert second.event == first.event
    assert (second.attempts, second.error) == (1, "status 500")
    assert await sizes(redis) == (0, 1, 0, 0)

    await outbox.set_aside(second, attempts=2, error="timeout | twice", pause=AT_ONCE)
    (third,) = await outbox.take(1)
    assert (third.event, third.attempts, third.error) == (first.event, 2, "timeout | twice")


async def test_the_retries_of_each_bucket_are_taken_when_due(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis, 100, buckets=MANY_BUCKETS)
    deliveries = await outbox.take(100)
    for number, delivery in enumerate(deliveries):
        await outbox.set_aside(delivery, attempts=1, error="", pause=HOUR if number % 2 else AT_ONCE)

    assert sorted(ids(await outbox.take(100))) == sorted(ids(deliveries[::2]))
    await age(redis, HOUR)
    again = await make_outbox(redis).take(200)  # with those that were taken an hour ago, and never settled
    assert sorted(ids(again)) == sorted(ids(deliveries))


async def test_a_hundred_concurrent_set_asides_count_once(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis)
    (delivery,) = await outbox.take(1)

    await asyncio.gather(
        *[outbox.set_aside(delivery, attempts=n, error="", pause=HOUR if n % 2 else None) for n in range(100)]
    )

    new, retry, dead, letters = await sizes(redis)
    assert (new, retry + dead, letters) == (0, 1, dead)


async def test_setting_aside_a_delivered_event_changes_nothing(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis)
    (delivery,) = await outbox.take(1)

    await outbox.done(delivery)
    await outbox.set_aside(delivery, attempts=1, error="timeout", pause=AT_ONCE)
    await outbox.set_aside(delivery, attempts=7, error="timeout", pause=None)

    assert await sizes(redis) == (0, 0, 0, 0)


async def test_of_a_hundred_concurrent_takes_each_due_retry_is_taken_once(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis, 10)
    for delivery in await outbox.take(10):
        await outbox.set_aside(delivery, attempts=1, error="", pause=AT_ONCE)
    await outbox.flush()

    taken = await take_at_once(redis, 1, expected=10)
    assert len(set(ids(taken))) == len(taken) == 10


async def test_an_expired_verification_becomes_exactly_one_event(redis: Redis) -> None:
    await add_expiries(redis, 50)
    await add_expiries(redis, 50, bucket="0a2")

    events = [delivery.event for delivery in await take_at_once(redis, 10, expected=100)]

    assert len({event.verification_id for event in events}) == len({event.id for event in events}) == len(events) == 100
    assert {(event.type, event.status, event.client, event.purpose, event.channel) for event in events} == {
        ("verification.expired", "expired", "shop", "login", "voice")
    }
    assert {(event.phone, event.call_status) for event in events} == {(Phone("+79001234567"), None)}
    assert await redis.zcard(outbox_key(BUCKET)) == 0


async def test_the_time_of_an_expired_event_is_the_time_of_the_expiry(redis: Redis, outbox: RedisOutbox) -> None:
    await add_expiries(redis, expired_ago=60_000)

    (delivery,) = await outbox.take(1)
    assert 55 < time.time() - delivery.event.at.timestamp() < 65


async def test_an_expired_event_that_is_retried_keeps_its_time(redis: Redis, outbox: RedisOutbox) -> None:
    await add_expiries(redis)
    (first,) = await outbox.take(1)
    await outbox.set_aside(first, attempts=1, error="", pause=AT_ONCE)

    (second,) = await outbox.take(1)
    assert second.event == first.event


async def test_a_verification_that_has_not_expired_has_no_event(redis: Redis, outbox: RedisOutbox) -> None:
    await add_expiries(redis, expired_ago=-60_000)

    assert await outbox.take(10) == []
    assert await redis.zcard(outbox_key(BUCKET)) == 1


async def test_an_unreadable_entry_is_logged_and_deleted(
    redis: Redis, outbox: RedisOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.zadd(outbox_key(BUCKET), {"verification.created|79001234567": 0})
    await add_events(redis)

    assert len(await outbox.take(10)) == 1
    assert await sizes(redis) == (0, 1, 0, 0)
    assert [record.message for record in caplog.records] == ["event.unreadable"]
    assert "79001234567" not in str(vars(caplog.records[0]))


async def test_of_too_many_new_events_the_oldest_are_dropped_counted_and_logged(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Expiries that are only scheduled neither count nor are dropped."""
    dropped: list[int] = []
    outbox = RedisOutbox(ScriptRunner(redis, timeout=5), dropped=dropped.append)
    added = [event_id for age_ms in range(71, 1, -1) for event_id in await add_events(redis, due_ago=1000 * age_ms)]
    await add_expiries(redis, 100, expired_ago=-60_000)
    await make_due(redis, BUCKET)

    assert ids(await outbox.take(100)) == added[6:]
    assert dropped == [6]
    assert [(record.message, vars(record)["count"]) for record in caplog.records] == [("event.lost", 6)]
    assert await sizes(redis) == (100, 64, 0, 0)


async def make_dead_letters(redis: Redis, outbox: RedisOutbox, count: int = 1) -> list[str]:
    added: list[str] = []
    for _ in range(0, count, len(MANY_BUCKETS)):
        wanted = min(count - len(added), len(MANY_BUCKETS))
        added += await add_events(redis, wanted, buckets=MANY_BUCKETS[:wanted])
        for delivery in sorted(await outbox.take(wanted), key=lambda each: added.index(each.event.id)):
            assert not await outbox.set_aside(delivery, attempts=7, error="status 500", pause=None)
    return added


async def test_a_dead_letter_is_listed_and_can_be_resent(redis: Redis, outbox: RedisOutbox) -> None:
    (event_id,) = await make_dead_letters(redis, outbox)

    (letter,) = await outbox.dead_letters()
    assert (letter.event.id, letter.attempts, letter.error) == (event_id, 7, "status 500")
    assert abs(time.time() - letter.died_at.timestamp()) < 5
    assert await sizes(redis) == (0, 0, 1, 1)

    assert await outbox.resend(event_id)
    assert await sizes(redis) == (0, 1, 0, 0)
    (delivery,) = await make_outbox(redis).take(1)
    assert (delivery.event, delivery.attempts) == (letter.event, 0)


async def test_an_event_whose_worker_dies_while_it_becomes_a_dead_letter_is_tried_again_and_buried_once(
    redis: Redis, outbox: RedisOutbox
) -> None:
    async def die() -> None:
        raise StoreUnavailable

    dying = RedisOutbox(Interrupted(redis, DONE, before=die))
    (event_id,) = await add_events(redis)
    (delivery,) = await dying.take(1)
    with pytest.raises(StoreUnavailable):
        await dying.set_aside(delivery, attempts=7, error="status 500", pause=None)
    assert await sizes(redis) == (0, 1, 1, 1)
    await dying.flush()

    await age(redis, CLAIM_AFTER)
    (again,) = await outbox.take(1)
    assert (again.event, again.attempts, again.error) == (delivery.event, 7, "status 500")
    assert not await outbox.set_aside(again, attempts=8, error="status 501", pause=None)
    assert await sizes(redis) == (0, 0, 1, 1)
    assert [(it.event.id, it.attempts, it.error) for it in await outbox.dead_letters()] == [(event_id, 8, "status 501")]


@pytest.mark.parametrize("event_id", ["", "msg_", "-", "msg_1-0", "*"])
async def test_an_unknown_dead_letter_is_not_resent(redis: Redis, outbox: RedisOutbox, event_id: str) -> None:
    await make_dead_letters(redis, outbox)

    assert not await outbox.resend(event_id)
    assert await sizes(redis) == (0, 0, 1, 1)


async def test_an_event_waiting_for_a_retry_is_not_resent(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis)
    (delivery,) = await outbox.take(1)
    await outbox.set_aside(delivery, attempts=1, error="", pause=HOUR)

    assert not await outbox.resend(delivery.event.id)
    assert await sizes(redis) == (0, 1, 0, 0)


async def test_of_a_hundred_concurrent_resends_exactly_one_succeeds(redis: Redis, outbox: RedisOutbox) -> None:
    (event_id,) = await make_dead_letters(redis, outbox)

    assert sum(await asyncio.gather(*[outbox.resend(event_id) for _ in range(100)])) == 1
    assert await sizes(redis) == (0, 1, 0, 0)


async def test_resend_all_resends_every_dead_letter(redis: Redis, outbox: RedisOutbox) -> None:
    event_ids = await make_dead_letters(redis, outbox, 1_001)

    assert await outbox.resend_all() == 1_001
    assert await outbox.resend_all() == 0
    assert sorted(ids(await outbox.take(2_000))) == sorted(event_ids)


async def test_dead_letters_of_one_bucket_are_all_delivered_again_however_many_there_are(
    redis: Redis, outbox: RedisOutbox
) -> None:
    added = []
    for _ in range(3):
        added += await add_events(redis, 64)
        for delivery in await outbox.take(64):
            await outbox.set_aside(delivery, attempts=7, error="", pause=None)

    assert await outbox.resend_all() == 192
    assert sorted(ids(await outbox.take(256))) == sorted(added)


async def test_the_number_of_dead_letters_is_limited_to_the_newest(redis: Redis) -> None:
    outbox = make_outbox(redis, most_dead=3)
    event_ids = await make_dead_letters(redis, outbox, 5)

    assert [letter.event.id for letter in await outbox.dead_letters()] == event_ids[2:]
    assert await sizes(redis) == (0, 0, 3, 3)


async def test_an_event_becomes_a_dead_letter_when_too_many_retries_are_waiting(redis: Redis) -> None:
    outbox = make_outbox(redis)
    await add_events(redis, 64)
    for delivery in await outbox.take(64):
        assert await outbox.set_aside(delivery, attempts=1, error="", pause=HOUR)
    await add_events(redis)
    (one_more,) = await outbox.take(1)

    assert not await outbox.set_aside(one_more, attempts=1, error="", pause=HOUR)
    assert await sizes(redis) == (0, 64, 1, 1)


async def test_a_dead_letter_is_deleted_after_thirty_days(redis: Redis, outbox: RedisOutbox) -> None:
    (old,) = await make_dead_letters(redis, outbox)
    await redis.zincrby(DEAD, -(timedelta(days=30, seconds=1) // timedelta(milliseconds=1)), old)

    assert await outbox.dead_letters() == []
    assert (await outbox.gauges())["webhooks_dead"] == 0
    assert await outbox.resend_all() == 0
    await make_dead_letters(redis, outbox)
    assert await sizes(redis) == (0, 0, 1, 1)


async def test_the_backlog_has_lag_queued_retries_and_dead_letters(redis: Redis, outbox: RedisOutbox) -> None:
    assert await outbox.gauges() == {"webhook_lag_seconds": 0, "webhooks_pending": 0, "webhooks_dead": 0}
    await make_dead_letters(redis, outbox)
    await add_events(redis, 4, due_ago=1000)
    (delivery,) = await outbox.take(1)
    await outbox.set_aside(delivery, attempts=1, error="", pause=HOUR)
    (taken,) = await outbox.take(1)

    gauges = await outbox.gauges()
    assert (gauges["webhooks_pending"], gauges["webhooks_dead"]) == (3, 1)
    assert await sizes(redis) == (2, 2, 1, 1)
    assert gauges["webhook_lag_seconds"] < 5

    await outbox.done(taken)
    for delivery in await outbox.take(2):
        await outbox.done(delivery)
    assert (await outbox.gauges())["webhooks_pending"] == 1


async def test_overdue_retries_and_expiries_count_as_lag(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis)
    (delivery,) = await outbox.take(1)
    await outbox.set_aside(delivery, attempts=1, error="", pause=HOUR)
    await add_expiries(redis, bucket="0a2", expired_ago=-3_600_000)
    assert await outbox.take(1) == []
    assert (await outbox.gauges())["webhook_lag_seconds"] == 0

    await age(redis, HOUR + timedelta(minutes=1))
    assert 55 < (await outbox.gauges())["webhook_lag_seconds"] < 65


async def test_an_event_that_was_not_taken_counts_as_lag(redis: Redis, outbox: RedisOutbox) -> None:
    await add_events(redis, due_ago=60_000)
    await add_events(redis, buckets=["0a2"])

    assert 59 < (await outbox.gauges())["webhook_lag_seconds"] < 65


async def test_every_key_has_a_ttl_after_every_step(redis: Redis, outbox: RedisOutbox) -> None:
    await add_expiries(redis)
    (delivery,) = await outbox.take(1)
    assert await all_have_a_ttl(redis)
    await outbox.set_aside(delivery, attempts=1, error="", pause=AT_ONCE)
    assert await all_have_a_ttl(redis)
    (delivery,) = await outbox.take(1)
    assert await all_have_a_ttl(redis)
    await outbox.set_aside(delivery, attempts=1, error="", pause=None)
    assert await all_have_a_ttl(redis)
    await redis.delete(DUE, SWEPT, WAITING)
    await outbox.resend_all()
    assert sorted(await redis.keys()) == [retries_key(BUCKET).encode(), DUE.encode()]
    assert await all_have_a_ttl(redis)


def test_the_keys_of_a_bucket_are_in_the_slot_of_its_verifications() -> None:
    record = RecordName.from_id(VERIFICATION_ID)
    assert record
    assert len({key_slot(key.encode()) for key in (stored(record.key), outbox_key(BUCKET), retries_key(BUCKET))}) == 1


def test_the_index_and_the_dead_letters_are_in_one_slot() -> None:
    assert len({key_slot(key.encode()) for key in (DUE, SWEPT, WAITING, DEAD, DEAD_EVENTS)}) == 1


async def test_taking_without_redis_raises_store_unavailable() -> None:
    nowhere = connect("unix:///nonexistent/socket", timeout=0.1)

    with pytest.raises(StoreUnavailable):
        await make_outbox(nowhere).take(1)
    await nowhere.aclose()


async def test_a_change_is_not_forgotten_while_redis_is_unavailable(redis: Redis) -> None:
    async def fail() -> None:
        if failures:
            raise failures.pop()

    failures = [StoreUnavailable()]
    outbox = RedisOutbox(Interrupted(redis, LEASE, before=fail))
    (event_id,) = await add_events(redis)
    await redis.delete(DUE)
    outbox.note_change(BUCKET)

    with pytest.raises(StoreUnavailable):
        await outbox.take(1)
    assert ids(await outbox.take(1)) == [event_id]


async def test_events_of_other_buckets_are_taken_when_one_cannot_be_read(redis: Redis) -> None:
    """It may be on a node of a cluster that is down."""

    async def fail_once() -> None:
        if failures:
            raise failures.pop()

    failures = [StoreUnavailable()]
    await add_events(redis, 3, buckets=["0a1", "0a2", "0a3"])

    assert len(await RedisOutbox(Interrupted(redis, TAKE, before=fail_once)).take(3)) == 2


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not recorded"])
async def test_the_created_event_is_always_the_first_of_a_verification(
    store: RedisVerificationStore, outbox: RedisOutbox, *, recorded: bool
) -> None:
    """The call may not be recorded: the worker crashed, or the code was checked before the provider answered."""
    call = NewCall(
        client="shop",
        phone=Phone("+79001234567"),
        purpose="login",
        channel=Channel.VOICE,
        code_digest=b"r" * 32,
        code_length=6,
        checks=5,
    )
    verification = (await start(store, call, make_policy())).verification
    if recorded:
        await store.record_call(verification, 1, CallUpdate(state=CallState(CallStatus.INITIATED), ref="ref"))
    await store.check_by_id(verification.id, CodeCheck(client="shop", candidates=[b"r" * 32], length=6), make_policy())

    sent = [(delivery.event.type, delivery.event.status) for delivery in await outbox.take(10)]

    assert sent == [("verification.created", "pending"), ("verification.verified", "verified")]


@pytest.mark.parametrize("ending", ["verified", "canceled"])
async def test_an_ended_verification_has_no_expired_event_after_a_refunded_resend(
    redis: Redis, store: RedisVerificationStore, outbox: RedisOutbox, ending: str
) -> None:
    policy = make_policy(cooldowns=(AT_ONCE,))
    call = NewCall(
        client="shop",
        phone=Phone("+79001234567"),
        purpose="login",
        channel=Channel.VOICE,
        code_digest=b"r" * 32,
        code_length=6,
        checks=5,
    )
    first = (await start(store, call, policy)).verification
    await store.record_call(first, 1, CallUpdate(state=CallState(CallStatus.INITIATED), ref="ref"))
    await age(redis, policy.lifetime - timedelta(seconds=30))
    await start(store, replace(call, code_digest=b"s" * 32, resend_of=first.id), policy)
    if ending == "verified":
        await store.check_by_id(first.id, CodeCheck(client="shop", candidates=[b"r" * 32], length=6), policy)
    else:
        await store.cancel("shop", first.id)
    await age(redis, timedelta(seconds=60))

    await store.refund(CallId(first.id, 2), phone=call.phone, client="shop", policy=policy)

    sent = [delivery.event.type for delivery in await outbox.take(10)]
    assert sent == ["verification.created", f"verification.{ending}"]


CALL = NewCall(
    client="shop",
    phone=Phone("+79001234567"),
    purpose="login",
    channel=Channel.VOICE,
    code_digest=b"r" * 32,
    code_length=6,
    checks=5,
)
PLACED = CallUpdate(state=CallState(CallStatus.INITIATED), ref="ref")


@pytest.mark.parametrize("second", ["voice", "flash_call", "refunded before it is recorded", "refunded later"])
async def test_a_verification_expires_in_one_event_that_names_its_last_call(
    redis: Redis, store: RedisVerificationStore, outbox: RedisOutbox, second: str
) -> None:
    policy = make_policy(cooldowns=(AT_ONCE,))
    verification = (await start(store, CALL, policy)).verification
    await store.record_call(verification, 1, PLACED)
    await age(redis, policy.lifetime / 2)
    channel = Channel.FLASH_CALL if second == "flash_call" else Channel.VOICE
    resent = await start(store, replace(CALL, channel=channel, resend_of=verification.id), policy)
    if second != "refunded before it is recorded":
        await store.record_call(verification, 2, PLACED)
    if second.startswith("refunded"):
        await store.refund(CallId(verification.id, 2), phone=CALL.phone, client="shop", policy=policy)
    expires_at = (
        verification.expires_at - policy.lifetime / 2
        if second.startswith("refunded")
        else resent.verification.expires_at
    )

    assert "verification.expired" not in [delivery.event.type for delivery in await outbox.take(10)]
    await age(redis, policy.lifetime)
    (event,) = [it.event for it in await sweep(make_outbox(redis)) if it.event.type == "verification.expired"]
    assert (event.verification_id, event.channel, event.status) == (verification.id, channel, "expired")
    assert event.at == expires_at - policy.lifetime


async def test_a_verification_that_ends_as_it_expires_ends_once(redis: Redis, store: RedisVerificationStore) -> None:
    """Also in the very millisecond of its expiry, when it can still be canceled."""
    policy = make_policy(cooldowns=(AT_ONCE,), lifetime=timedelta(seconds=1))

    async def cancel_near_expiry(number: int) -> str:
        verification = (await start(store, replace(CALL, phone=Phone(f"+790012345{number:02}")), policy)).verification
        with suppress(VerificationNotFound):
            await store.record_call(verification, 1, PLACED)
            await asyncio.sleep((verification.expires_at - datetime.now(UTC)).total_seconds() - 0.03)
            while (await store.read(verification.id, client="shop")).status is not Status.CANCELED:
                if verification.expires_at - datetime.now(UTC) <= timedelta(milliseconds=number % 3):
                    await store.cancel("shop", verification.id)
        return verification.id

    started = await asyncio.gather(*map(cancel_near_expiry, range(60)))
    await asyncio.sleep(0.1)
    found = Counter(
        it.event.verification_id
        for it in await sweep(make_outbox(redis))
        if it.event.type in {"verification.canceled", "verification.expired"}
    )
    assert found == Counter(started)


async def test_a_verification_that_the_sandbox_lets_expire_has_its_event_at_once(
    redis: Redis, store: RedisVerificationStore, outbox: RedisOutbox
) -> None:
    verification = (await start(store, CALL, make_policy())).verification
    await store.record_call(verification, 1, PLACED)
    before = now_ms()

    assert await store.expire(verification.id)

    created, expired = [delivery.event for delivery in await sweep(outbox)]
    assert (created.type, expired.type, expired.status) == ("verification.created", "verification.expired", "expired")
    assert before - 1 <= to_ms(expired.at) <= now_ms()
    with pytest.raises(VerificationNotFound):
        await store.check_by_id(
            verification.id, CodeCheck(client="shop", candidates=[b"r" * 32], length=6), make_policy()
        )
    assert not await store.expire(verification.id)
    await age(redis, make_policy().lifetime)
    assert {it.event.id for it in await sweep(outbox)} <= {
        created.id,
        expired.id,
    }  # taken again, for they were not settled


async def test_a_verification_that_has_ended_does_not_expire_early(
    store: RedisVerificationStore, outbox: RedisOutbox
) -> None:
    verification = (await start(store, CALL, make_policy())).verification
    await store.record_call(verification, 1, PLACED)
    await store.cancel("shop", verification.id)

    assert not await store.expire(verification.id)

    assert (await store.read(verification.id, client="shop")).status is Status.CANCELED
    assert [it.event.type for it in await sweep(outbox)] == ["verification.created", "verification.canceled"]


async def test_an_expiry_is_due_in_the_millisecond_after_it(redis: Redis, store: RedisVerificationStore) -> None:
    verification = (await start(store, CALL, make_policy())).verification
    await store.record_call(verification, 1, PLACED)

    found: Any = await redis.zrange(outbox_key(verification.id[4:7]), -1, -1, withscores=True)
    assert found[0][1] == await redis.pexpiretime(f"pv3{{{verification.id[4:7]}}}:{verification.id[7:]}") + 1
