"""The webhook outbox in Redis: each event is in exactly one place, also with concurrent and crashed workers."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from app.store import webhooks
from app.store.connection import connect
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import GROUP, RedisOutbox
from app.verification.channels import Channel
from app.verification.errors import StoreUnavailable
from app.verification.model import CallState, CallStatus
from app.verification.phone import Phone
from app.verification.ports import CallId, CallUpdate, CodeCheck, NewCall
from app.verification.webhooks import Delivery
from tests.ageing import age
from tests.keys import stored
from tests.policies import make_policy
from tests.starting import start

STREAM = stored(webhooks.STREAM)
EXPIRY, RETRY, DEAD, BODIES = (f"{STREAM}:{name}" for name in ("expiry", "retry", "dead", "bodies"))
AT_ONCE = timedelta(0)
SOON = timedelta(milliseconds=30)
HOUR = timedelta(hours=1)
ENTRY: dict[str, str] = {
    "type": "verification.created",
    "client": "shop",
    "id": "vrf_0a11b22c33d44e55f667788",
    "purpose": "login",
    "channel": "voice",
    "phone": "79001234567",
    "status": "pending",
    "call": "initiated",
    "at": "1769850000123",
}


def make_outbox(
    redis: Redis,
    *,
    claim_after: timedelta = timedelta(minutes=1),
    most_dead: int = 10_000,
    most_retries: int = 100_000,
) -> RedisOutbox:
    runner = ScriptRunner(redis, timeout=1)
    return RedisOutbox(runner, claim_after=claim_after, most_dead=most_dead, most_retries=most_retries)


@pytest.fixture
def outbox(redis: Redis) -> RedisOutbox:
    return make_outbox(redis)


async def add(redis: Redis, count: int = 1, **fields: str) -> list[str]:
    entry: dict[Any, Any] = {**ENTRY, **fields}
    names = [await redis.xadd(STREAM, entry, maxlen=100_000) for _ in range(count)]
    await redis.pexpire(STREAM, timedelta(days=3))
    return [bytes(name).decode() for name in names if isinstance(name, bytes)]


async def add_pending(redis: Redis, count: int = 1, *, expired_ago: int = 1_000) -> None:
    expires = int(time.time() * 1000) - expired_ago
    await redis.zadd(EXPIRY, {f"shop|vrf_0a1{n:020x}|login|voice|79001234567": expires for n in range(count)})
    await redis.pexpire(EXPIRY, timedelta(days=3))


async def sizes(redis: Redis) -> tuple[int, int, int, int]:
    """Return the numbers of events in the stream, waiting for a retry and dead, and of stored bodies."""
    return (await redis.xlen(STREAM), await redis.zcard(RETRY), await redis.zcard(DEAD), await redis.hlen(BODIES))


async def all_have_a_ttl(redis: Redis) -> bool:
    return all([await redis.pttl(key) > 0 for key in await redis.keys()])


def ids(deliveries: Iterable[Delivery]) -> list[str]:
    return [delivery.event.id for delivery in deliveries]


async def test_a_stream_entry_is_read_as_an_event(redis: Redis, outbox: RedisOutbox) -> None:
    (name,) = await add(redis)

    (delivery,) = await outbox.take(10)

    event = delivery.event
    assert (delivery.entry, delivery.attempts, delivery.error) == (name, 0, "")
    assert (event.id, event.type, event.client) == (f"msg_{name}", "verification.created", "shop")
    assert (event.verification_id, event.purpose, event.channel) == ("vrf_0a11b22c33d44e55f667788", "login", "voice")
    assert (event.phone, event.status, event.call_status) == (Phone("+79001234567"), "pending", "initiated")
    assert event.at.isoformat() == "2026-01-31T09:00:00.123000+00:00"


async def test_an_event_without_a_call_has_no_call_status(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis, call="")

    assert [delivery.event.call_status for delivery in await outbox.take(1)] == [None]


async def test_taking_from_an_empty_outbox_writes_nothing(redis: Redis, outbox: RedisOutbox) -> None:
    assert await outbox.take(10) == []
    assert await redis.keys() == []


async def test_of_a_hundred_concurrent_takes_each_event_is_taken_once(redis: Redis) -> None:
    names = await add(redis, 100)
    instances = [make_outbox(redis) for _ in range(4)]

    taken = await asyncio.gather(*[instances[number % 4].take(3) for number in range(100)])

    assert sorted(delivery.entry for part in taken for delivery in part) == sorted(names)


async def test_no_more_events_are_taken_than_requested(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis, 5)

    assert [len(await outbox.take(2)) for _ in range(4)] == [2, 2, 1, 0]


async def test_a_delivered_event_is_deleted(redis: Redis) -> None:
    reclaiming = make_outbox(redis, claim_after=AT_ONCE)
    await add(redis)
    (delivery,) = await reclaiming.take(1)

    await reclaiming.done(delivery)
    await reclaiming.done(delivery)

    assert await sizes(redis) == (0, 0, 0, 0)
    assert await reclaiming.take(1) == []


async def test_an_event_of_a_crashed_worker_is_taken_again_after_claim_after(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis)
    (held,) = await outbox.take(1)

    assert await outbox.take(1) == []
    assert await make_outbox(redis, claim_after=AT_ONCE).take(1) == [held]


async def test_of_a_hundred_concurrent_takes_one_gets_the_event_of_a_crashed_worker(redis: Redis) -> None:
    slow = make_outbox(redis, claim_after=timedelta(milliseconds=50))
    await add(redis)
    await slow.take(1)
    await asyncio.sleep(0.06)

    taken = await asyncio.gather(*[slow.take(1) for _ in range(100)])
    assert sum(map(len, taken)) == 1


async def test_reclaimed_and_new_events_together_stay_within_the_count(redis: Redis) -> None:
    reclaiming = make_outbox(redis, claim_after=AT_ONCE)
    await add(redis, 3)
    await reclaiming.take(2)

    assert len(await reclaiming.take(2)) == 2
    assert len(await reclaiming.take(5)) == 3


async def test_a_deleted_consumer_group_is_created_again_without_losing_events(
    redis: Redis, outbox: RedisOutbox
) -> None:
    names = await add(redis, 2)
    await outbox.take(1)
    await redis.xgroup_destroy(STREAM, GROUP)

    assert [delivery.entry for delivery in await outbox.take(10)] == names


async def test_an_event_without_its_consumer_group_stays_in_the_stream(redis: Redis, outbox: RedisOutbox) -> None:
    """The new group delivers the event again; set aside as well, it would be in two places."""
    await add(redis)
    (delivery,) = await outbox.take(1)
    await redis.xgroup_destroy(STREAM, GROUP)
    await redis.xgroup_create(STREAM, GROUP, id="0")

    await outbox.set_aside(delivery, attempts=1, error="", pause=AT_ONCE)
    assert await sizes(redis) == (1, 0, 0, 0)
    assert await outbox.take(10) == [delivery]


async def test_the_outbox_works_after_redis_was_flushed(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis)
    (delivery,) = await outbox.take(1)
    await redis.flushall()

    await outbox.done(delivery)
    assert await outbox.set_aside(delivery, attempts=1, error="status 500", pause=AT_ONCE)
    assert await redis.keys() == []
    await add(redis)
    assert len(await outbox.take(1)) == 1


async def test_a_retried_event_is_taken_when_due_with_the_same_id(redis: Redis, outbox: RedisOutbox) -> None:
    (name,) = await add(redis)
    (first,) = await outbox.take(1)

    assert await outbox.set_aside(first, attempts=1, error="status 500", pause=SOON)
    assert await outbox.take(1) == []
    assert await sizes(redis) == (0, 1, 0, 1)
    await asyncio.sleep(SOON.total_seconds() + 0.01)

    (second,) = await outbox.take(1)
    assert second.event == first.event
    assert (second.attempts, second.error) == (1, "status 500")
    assert second.entry != name
    assert await sizes(redis) == (1, 0, 0, 0)

    await outbox.set_aside(second, attempts=2, error="timeout", pause=AT_ONCE)
    (third,) = await outbox.take(1)
    assert (third.event, third.attempts, third.error) == (first.event, 2, "timeout")


async def test_a_hundred_concurrent_set_asides_count_once(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis)
    (delivery,) = await outbox.take(1)

    await asyncio.gather(
        *[outbox.set_aside(delivery, attempts=n, error="", pause=HOUR if n % 2 else None) for n in range(100)]
    )

    stream, retry, dead, bodies = await sizes(redis)
    assert (stream, retry + dead, bodies) == (0, 1, 1)


async def test_setting_aside_a_delivered_event_changes_nothing(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis)
    (delivery,) = await outbox.take(1)

    await outbox.done(delivery)
    await outbox.set_aside(delivery, attempts=1, error="timeout", pause=AT_ONCE)

    assert await sizes(redis) == (0, 0, 0, 0)


async def take_at_once(redis: Redis, most: int) -> list[list[Delivery]]:
    """Take a hundred times at once, by ten workers: each has a connection of its own, and the pool has a hundred."""
    workers = [make_outbox(redis) for _ in range(10)]
    return await asyncio.gather(*[worker.take(most) for worker in workers for _ in range(10)])


async def test_of_a_hundred_concurrent_takes_each_due_retry_is_taken_once(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis, 10)
    for delivery in await outbox.take(10):
        await outbox.set_aside(delivery, attempts=1, error="", pause=AT_ONCE)

    taken = await take_at_once(redis, 1)
    assert len(set(ids(delivery for part in taken for delivery in part))) == sum(map(len, taken)) == 10


async def test_an_expired_verification_becomes_exactly_one_event(redis: Redis) -> None:
    await add_pending(redis, 100)

    taken = await take_at_once(redis, 10)

    events = [delivery.event for part in taken for delivery in part]
    assert len({event.verification_id for event in events}) == len({event.id for event in events}) == len(events) == 100
    assert {(event.type, event.status, event.client, event.purpose, event.channel) for event in events} == {
        ("verification.expired", "expired", "shop", "login", "voice")
    }
    assert {(event.phone, event.call_status) for event in events} == {(Phone("+79001234567"), None)}
    assert await redis.zcard(EXPIRY) == 0


async def test_the_time_of_an_expired_event_is_the_time_of_the_expiry(redis: Redis, outbox: RedisOutbox) -> None:
    await add_pending(redis, expired_ago=60_000)

    (delivery,) = await outbox.take(1)
    assert 55 < time.time() - delivery.event.at.timestamp() < 65


async def test_a_verification_that_has_not_expired_has_no_event(redis: Redis, outbox: RedisOutbox) -> None:
    await add_pending(redis, expired_ago=-60_000)

    assert await outbox.take(10) == []
    assert await redis.zcard(EXPIRY) == 1


async def test_an_unreadable_entry_is_logged_and_deleted(
    redis: Redis, outbox: RedisOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.xadd(STREAM, {"type": "verification.created", "phone": "79001234567"})
    await add(redis)

    assert len(await outbox.take(10)) == 1
    assert await redis.xlen(STREAM) == 1
    assert [record.message for record in caplog.records] == ["event.unreadable"]
    assert "79001234567" not in str(vars(caplog.records[0]))


async def test_an_event_trimmed_during_its_delivery_is_logged_as_lost(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    reclaiming = make_outbox(redis, claim_after=AT_ONCE)
    await add(redis)
    await reclaiming.take(1)
    await redis.xtrim(STREAM, maxlen=0, approximate=False)

    assert await reclaiming.take(1) == []
    assert [record.message for record in caplog.records] == ["event.lost"]


async def make_dead_letters(redis: Redis, outbox: RedisOutbox, count: int = 1) -> list[str]:
    await add(redis, count)
    deliveries = await outbox.take(count)
    for delivery in deliveries:
        assert not await outbox.set_aside(delivery, attempts=7, error="status 500", pause=None)
    return ids(deliveries)


async def test_a_dead_letter_is_listed_and_can_be_resent(redis: Redis, outbox: RedisOutbox) -> None:
    (event_id,) = await make_dead_letters(redis, outbox)

    (letter,) = await outbox.dead_letters()
    assert (letter.event.id, letter.attempts, letter.error) == (event_id, 7, "status 500")
    assert abs(time.time() - letter.died_at.timestamp()) < 5
    assert await sizes(redis) == (0, 0, 1, 1)

    assert await outbox.resend(event_id)
    assert await sizes(redis) == (1, 0, 0, 0)
    (delivery,) = await outbox.take(1)
    assert (delivery.event, delivery.attempts) == (letter.event, 0)


@pytest.mark.parametrize("event_id", ["", "msg_", "-", "msg_1-0", "*"])
async def test_an_unknown_dead_letter_is_not_resent(redis: Redis, outbox: RedisOutbox, event_id: str) -> None:
    await make_dead_letters(redis, outbox)

    assert not await outbox.resend(event_id)
    assert await sizes(redis) == (0, 0, 1, 1)


async def test_an_event_waiting_for_a_retry_is_not_resent(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis)
    (delivery,) = await outbox.take(1)
    await outbox.set_aside(delivery, attempts=1, error="", pause=HOUR)

    assert not await outbox.resend(delivery.event.id)
    assert await sizes(redis) == (0, 1, 0, 1)


async def test_of_a_hundred_concurrent_resends_exactly_one_succeeds(redis: Redis, outbox: RedisOutbox) -> None:
    (event_id,) = await make_dead_letters(redis, outbox)

    assert sum(await asyncio.gather(*[outbox.resend(event_id) for _ in range(100)])) == 1
    assert await redis.xlen(STREAM) == 1


async def test_resend_all_resends_every_dead_letter(redis: Redis, outbox: RedisOutbox) -> None:
    event_ids = await make_dead_letters(redis, outbox, 1_001)

    assert await outbox.resend_all() == 1_001
    assert await outbox.resend_all() == 0
    assert sorted(ids(await outbox.take(2_000))) == sorted(event_ids)


async def test_the_number_of_dead_letters_is_limited_to_the_newest(redis: Redis) -> None:
    outbox = make_outbox(redis, most_dead=3)
    event_ids = await make_dead_letters(redis, outbox, 5)

    assert [letter.event.id for letter in await outbox.dead_letters()] == event_ids[2:]
    assert await sizes(redis) == (0, 0, 3, 3)


async def test_an_event_becomes_a_dead_letter_when_too_many_retries_are_waiting(redis: Redis) -> None:
    outbox = make_outbox(redis, most_retries=1)
    await add(redis, 2)
    first, second = await outbox.take(2)

    assert await outbox.set_aside(first, attempts=1, error="", pause=HOUR)
    assert not await outbox.set_aside(second, attempts=1, error="", pause=HOUR)
    assert await sizes(redis) == (0, 1, 1, 2)


async def test_a_dead_letter_is_deleted_after_thirty_days(redis: Redis, outbox: RedisOutbox) -> None:
    (old,) = await make_dead_letters(redis, outbox)
    await redis.zincrby(DEAD, -(timedelta(days=30, seconds=1) // timedelta(milliseconds=1)), old.removeprefix("msg_"))

    assert await outbox.dead_letters() == []
    assert (await outbox.gauges())["webhooks_dead"] == 0
    assert await outbox.resend_all() == 0
    await make_dead_letters(redis, outbox)
    assert await sizes(redis) == (0, 0, 1, 1)


async def test_the_backlog_has_lag_queued_retries_and_dead_letters(redis: Redis, outbox: RedisOutbox) -> None:
    assert await outbox.gauges() == {"webhook_lag_seconds": 0, "webhooks_pending": 0, "webhooks_dead": 0}
    await make_dead_letters(redis, outbox)
    await add(redis, 3)
    (delivery,) = await outbox.take(1)
    await outbox.set_aside(delivery, attempts=1, error="", pause=HOUR)

    gauges = await outbox.gauges()
    assert (gauges["webhooks_pending"], gauges["webhooks_dead"]) == (3, 1)
    assert await sizes(redis) == (2, 1, 1, 2)
    assert gauges["webhook_lag_seconds"] < 5


@pytest.mark.parametrize("key", [RETRY, EXPIRY])
async def test_overdue_retries_and_expiries_count_as_lag(redis: Redis, outbox: RedisOutbox, key: str) -> None:
    now = int(time.time() * 1000)
    await redis.zadd(key, {"one": now + 60_000})
    assert (await outbox.gauges())["webhook_lag_seconds"] == 0

    await redis.zadd(key, {"other": now - 60_000})
    assert 59 < (await outbox.gauges())["webhook_lag_seconds"] < 65


async def test_an_event_that_was_not_taken_counts_as_lag(redis: Redis, outbox: RedisOutbox) -> None:
    old = int(time.time() * 1000) - 60_000
    await redis.xadd(STREAM, dict[Any, Any](ENTRY), id=f"{old}-0")
    await add(redis)

    assert 59 < (await outbox.gauges())["webhook_lag_seconds"] < 65


async def test_every_key_has_a_ttl_after_every_step(redis: Redis, outbox: RedisOutbox) -> None:
    await add_pending(redis)
    (delivery,) = await outbox.take(1)
    assert await all_have_a_ttl(redis)
    await outbox.set_aside(delivery, attempts=1, error="", pause=AT_ONCE)
    assert await all_have_a_ttl(redis)
    await redis.delete(STREAM)
    (delivery,) = await outbox.take(1)
    assert await all_have_a_ttl(redis)
    await outbox.set_aside(delivery, attempts=1, error="", pause=None)
    assert await all_have_a_ttl(redis)
    await redis.delete(STREAM)
    await outbox.resend_all()
    assert await redis.keys() == [STREAM.encode()]
    assert await all_have_a_ttl(redis)


async def test_all_keys_are_in_one_cluster_slot() -> None:
    assert len({key_slot(key.encode()) for key in (STREAM, EXPIRY, RETRY, DEAD, BODIES)}) == 1


async def test_taking_without_redis_raises_store_unavailable() -> None:
    nowhere = connect("unix:///nonexistent/socket", timeout=0.1)

    with pytest.raises(StoreUnavailable):
        await make_outbox(nowhere).take(1)
    await nowhere.aclose()


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not recorded"])
async def test_the_created_event_is_always_the_first_of_a_verification(
    redis: Redis, outbox: RedisOutbox, *, recorded: bool
) -> None:
    """The call may not be recorded: the worker crashed, or the code was checked before the provider answered."""
    store = RedisVerificationStore(ScriptRunner(redis, timeout=1), phone_key=b"k" * 32, webhook_clients={"shop"})
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
    redis: Redis, outbox: RedisOutbox, ending: str
) -> None:
    store = RedisVerificationStore(ScriptRunner(redis, timeout=1), phone_key=b"k" * 32, webhook_clients={"shop"})
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
