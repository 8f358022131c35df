"""The outbox in Redis: an event is in one place at every moment, whoever works on it and whoever dies."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from app.store.connection import connect
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import GROUP, STREAM, RedisOutbox
from app.verification.channels import Channel
from app.verification.errors import StoreUnavailable
from app.verification.model import CallState, CallStatus
from app.verification.phone import Phone
from app.verification.ports import CallId, CallUpdate, CodeCheck, NewCall
from app.verification.webhooks import Delivery
from tests.ageing import age
from tests.policies import make_policy
from tests.starting import start

EXPIRY, RETRY, DEAD, LETTERS = (f"{STREAM}:{name}" for name in ("expiry", "retry", "dead", "letters"))
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


def make(
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
    return make(redis)


async def add(redis: Redis, count: int = 1, **fields: str) -> list[str]:
    entry: dict[Any, Any] = {**ENTRY, **fields}
    names = [await redis.xadd(STREAM, entry, maxlen=100_000) for _ in range(count)]
    await redis.pexpire(STREAM, timedelta(days=3))
    return [bytes(name).decode() for name in names if isinstance(name, bytes)]


async def add_pending(redis: Redis, count: int = 1, *, expired_ago: int = 1_000) -> None:
    expires = int(time.time() * 1000) - expired_ago
    await redis.zadd(EXPIRY, {f"shop|vrf_0a1{n:020x}|login|voice|79001234567": expires for n in range(count)})
    await redis.pexpire(EXPIRY, timedelta(days=3))


async def where(redis: Redis) -> tuple[int, int, int, int]:
    """How many are in the stream, wait for another try, are dead; and how many letters there are."""
    return (await redis.xlen(STREAM), await redis.zcard(RETRY), await redis.zcard(DEAD), await redis.hlen(LETTERS))


async def all_have_a_ttl(redis: Redis) -> bool:
    return all([await redis.pttl(key) > 0 for key in await redis.keys()])


def ids(deliveries: Iterable[Delivery]) -> list[str]:
    return [delivery.event.id for delivery in deliveries]


async def test_an_entry_is_read_as_an_event(redis: Redis, outbox: RedisOutbox) -> None:
    (name,) = await add(redis)

    (delivery,) = await outbox.take(10)

    event = delivery.event
    assert (delivery.entry, delivery.attempts, delivery.error) == (name, 0, "")
    assert (event.id, event.type, event.client) == (f"msg_{name}", "verification.created", "shop")
    assert (event.verification_id, event.purpose, event.channel) == ("vrf_0a11b22c33d44e55f667788", "login", "voice")
    assert (event.phone, event.status, event.call_status) == (Phone("+79001234567"), "pending", "initiated")
    assert event.at.isoformat() == "2026-01-31T09:00:00.123000+00:00"


async def test_without_a_call_there_is_no_call_status(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis, call="")

    assert [delivery.event.call_status for delivery in await outbox.take(1)] == [None]


async def test_an_empty_outbox_gives_nothing_and_leaves_nothing(redis: Redis, outbox: RedisOutbox) -> None:
    assert await outbox.take(10) == []
    assert await redis.keys() == []


async def test_of_a_hundred_takers_each_gets_events_of_its_own(redis: Redis) -> None:
    names = await add(redis, 100)
    instances = [make(redis) for _ in range(4)]

    taken = await asyncio.gather(*[instances[number % 4].take(3) for number in range(100)])

    assert sorted(delivery.entry for part in taken for delivery in part) == sorted(names)


async def test_no_more_are_taken_than_asked_for(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis, 5)

    assert [len(await outbox.take(2)) for _ in range(4)] == [2, 2, 1, 0]


async def test_a_delivered_event_is_gone(redis: Redis) -> None:
    hasty = make(redis, claim_after=AT_ONCE)
    await add(redis)
    (delivery,) = await hasty.take(1)

    await hasty.done(delivery)
    await hasty.done(delivery)

    assert await where(redis) == (0, 0, 0, 0)
    assert await hasty.take(1) == []


async def test_what_a_dead_worker_held_is_given_to_another_and_not_before(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis)
    (held,) = await outbox.take(1)

    assert await outbox.take(1) == []
    assert await make(redis, claim_after=AT_ONCE).take(1) == [held]


async def test_of_a_hundred_who_take_over_one_gets_the_event(redis: Redis) -> None:
    slow = make(redis, claim_after=timedelta(milliseconds=50))
    await add(redis)
    await slow.take(1)
    await asyncio.sleep(0.06)

    taken = await asyncio.gather(*[slow.take(1) for _ in range(100)])
    assert sum(map(len, taken)) == 1


async def test_what_was_taken_over_and_what_is_new_are_within_the_count(redis: Redis) -> None:
    hasty = make(redis, claim_after=AT_ONCE)
    await add(redis, 3)
    await hasty.take(2)

    assert len(await hasty.take(2)) == 2
    assert len(await hasty.take(5)) == 3


async def test_a_group_that_vanished_is_made_again_and_nothing_is_lost(redis: Redis, outbox: RedisOutbox) -> None:
    names = await add(redis, 2)
    await outbox.take(1)
    await redis.xgroup_destroy(STREAM, GROUP)

    assert [delivery.entry for delivery in await outbox.take(10)] == names


async def test_without_its_group_an_event_stays_where_it_is(redis: Redis, outbox: RedisOutbox) -> None:
    """The group that is made again gives it out anew: set aside as well, it would be in two places."""
    await add(redis)
    (delivery,) = await outbox.take(1)
    await redis.xgroup_destroy(STREAM, GROUP)
    await redis.xgroup_create(STREAM, GROUP, id="0")

    await outbox.set_aside(delivery, attempts=1, error="", pause=AT_ONCE)
    assert await where(redis) == (1, 0, 0, 0)
    assert await outbox.take(10) == [delivery]


async def test_after_a_flush_it_goes_on(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis)
    (delivery,) = await outbox.take(1)
    await redis.flushall()

    await outbox.done(delivery)
    assert await outbox.set_aside(delivery, attempts=1, error="status 500", pause=AT_ONCE)
    assert await redis.keys() == []
    await add(redis)
    assert len(await outbox.take(1)) == 1


async def test_an_event_set_aside_comes_back_when_it_is_due_with_its_id(redis: Redis, outbox: RedisOutbox) -> None:
    (name,) = await add(redis)
    (first,) = await outbox.take(1)

    assert await outbox.set_aside(first, attempts=1, error="status 500", pause=SOON)
    assert await outbox.take(1) == []
    assert await where(redis) == (0, 1, 0, 1)
    await asyncio.sleep(SOON.total_seconds() + 0.01)

    (second,) = await outbox.take(1)
    assert second.event == first.event
    assert (second.attempts, second.error) == (1, "status 500")
    assert second.entry != name
    assert await where(redis) == (1, 0, 0, 0)

    await outbox.set_aside(second, attempts=2, error="timeout", pause=AT_ONCE)
    (third,) = await outbox.take(1)
    assert (third.event, third.attempts, third.error) == (first.event, 2, "timeout")


async def test_setting_aside_counts_once_however_many_do_it(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis)
    (delivery,) = await outbox.take(1)

    await asyncio.gather(
        *[outbox.set_aside(delivery, attempts=n, error="", pause=HOUR if n % 2 else None) for n in range(100)]
    )

    stream, retry, dead, letters = await where(redis)
    assert (stream, retry + dead, letters) == (0, 1, 1)


async def test_who_comes_second_does_not_bring_a_delivered_event_back(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis)
    (delivery,) = await outbox.take(1)

    await outbox.done(delivery)
    await outbox.set_aside(delivery, attempts=1, error="timeout", pause=AT_ONCE)

    assert await where(redis) == (0, 0, 0, 0)


async def test_of_a_hundred_takers_one_gets_what_is_due_again(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis, 10)
    for delivery in await outbox.take(10):
        await outbox.set_aside(delivery, attempts=1, error="", pause=AT_ONCE)

    taken = await asyncio.gather(*[make(redis).take(1) for _ in range(100)])
    assert len(set(ids(delivery for part in taken for delivery in part))) == sum(map(len, taken)) == 10


async def test_an_expiry_becomes_one_event_however_many_look(redis: Redis) -> None:
    await add_pending(redis, 100)

    taken = await asyncio.gather(*[make(redis).take(10) for _ in range(100)])

    events = [delivery.event for part in taken for delivery in part]
    assert len({event.verification_id for event in events}) == len({event.id for event in events}) == len(events) == 100
    assert {(event.type, event.status, event.client, event.purpose, event.channel) for event in events} == {
        ("verification.expired", "expired", "shop", "login", "voice")
    }
    assert {(event.phone, event.call_status) for event in events} == {(Phone("+79001234567"), None)}
    assert await redis.zcard(EXPIRY) == 0


async def test_a_verification_expired_when_it_did_not_when_somebody_looked(redis: Redis, outbox: RedisOutbox) -> None:
    await add_pending(redis, expired_ago=60_000)

    (delivery,) = await outbox.take(1)
    assert 55 < time.time() - delivery.event.at.timestamp() < 65


async def test_what_expires_later_stays(redis: Redis, outbox: RedisOutbox) -> None:
    await add_pending(redis, expired_ago=-60_000)

    assert await outbox.take(10) == []
    assert await redis.zcard(EXPIRY) == 1


async def test_an_entry_that_nobody_can_read_is_dropped_aloud_and_holds_nothing_up(
    redis: Redis, outbox: RedisOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.xadd(STREAM, {"type": "verification.created", "phone": "79001234567"})
    await add(redis)

    assert len(await outbox.take(10)) == 1
    assert await redis.xlen(STREAM) == 1
    assert [record.message for record in caplog.records] == ["event.unreadable"]
    assert "79001234567" not in str(vars(caplog.records[0]))


async def test_what_redis_trimmed_while_it_was_in_flight_is_told(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    hasty = make(redis, claim_after=AT_ONCE)
    await add(redis)
    await hasty.take(1)
    await redis.xtrim(STREAM, maxlen=0, approximate=False)

    assert await hasty.take(1) == []
    assert [record.message for record in caplog.records] == ["event.lost"]


async def bury(redis: Redis, outbox: RedisOutbox, count: int = 1) -> list[str]:
    await add(redis, count)
    deliveries = await outbox.take(count)
    for delivery in deliveries:
        assert not await outbox.set_aside(delivery, attempts=7, error="status 500", pause=None)
    return ids(deliveries)


async def test_a_dead_letter_is_listed_and_sent_again_with_all_its_attempts(redis: Redis, outbox: RedisOutbox) -> None:
    (event_id,) = await bury(redis, outbox)

    (letter,) = await outbox.dead_letters()
    assert (letter.event.id, letter.attempts, letter.error) == (event_id, 7, "status 500")
    assert abs(time.time() - letter.died_at.timestamp()) < 5
    assert await where(redis) == (0, 0, 1, 1)

    assert await outbox.resend(event_id)
    assert await where(redis) == (1, 0, 0, 0)
    (delivery,) = await outbox.take(1)
    assert (delivery.event, delivery.attempts) == (letter.event, 0)


@pytest.mark.parametrize("event_id", ["", "msg_", "-", "msg_1-0", "*"])
async def test_an_event_that_is_not_dead_is_not_sent_again(redis: Redis, outbox: RedisOutbox, event_id: str) -> None:
    await bury(redis, outbox)

    assert not await outbox.resend(event_id)
    assert await where(redis) == (0, 0, 1, 1)


async def test_an_event_that_waits_for_another_try_is_not_sent_twice(redis: Redis, outbox: RedisOutbox) -> None:
    await add(redis)
    (delivery,) = await outbox.take(1)
    await outbox.set_aside(delivery, attempts=1, error="", pause=HOUR)

    assert not await outbox.resend(delivery.event.id)
    assert await where(redis) == (0, 1, 0, 1)


async def test_of_a_hundred_who_send_again_one_does(redis: Redis, outbox: RedisOutbox) -> None:
    (event_id,) = await bury(redis, outbox)

    assert sum(await asyncio.gather(*[outbox.resend(event_id) for _ in range(100)])) == 1
    assert await redis.xlen(STREAM) == 1


async def test_all_dead_letters_are_sent_again_however_many(redis: Redis, outbox: RedisOutbox) -> None:
    event_ids = await bury(redis, outbox, 1_001)

    assert await outbox.resend_all() == 1_001
    assert await outbox.resend_all() == 0
    assert sorted(ids(await outbox.take(2_000))) == sorted(event_ids)


async def test_dead_letters_are_bounded_and_the_oldest_go(redis: Redis) -> None:
    outbox = make(redis, most_dead=3)
    event_ids = await bury(redis, outbox, 5)

    assert [letter.event.id for letter in await outbox.dead_letters()] == event_ids[2:]
    assert await where(redis) == (0, 0, 3, 3)


async def test_where_too_many_wait_already_an_event_is_given_up(redis: Redis) -> None:
    outbox = make(redis, most_retries=1)
    await add(redis, 2)
    first, second = await outbox.take(2)

    assert await outbox.set_aside(first, attempts=1, error="", pause=HOUR)
    assert not await outbox.set_aside(second, attempts=1, error="", pause=HOUR)
    assert await where(redis) == (0, 1, 1, 2)


async def test_after_thirty_days_a_dead_letter_is_gone_though_others_came(redis: Redis, outbox: RedisOutbox) -> None:
    (old,) = await bury(redis, outbox)
    await redis.zincrby(DEAD, -(timedelta(days=30, seconds=1) // timedelta(milliseconds=1)), old.removeprefix("msg_"))

    assert await outbox.dead_letters() == []
    assert (await outbox.backlog()).dead == 0
    assert await outbox.resend_all() == 0
    await bury(redis, outbox)
    assert await where(redis) == (0, 0, 1, 1)


async def test_the_backlog_is_told(redis: Redis, outbox: RedisOutbox) -> None:
    empty = await outbox.backlog()
    assert (empty.lag, empty.queued, empty.retries, empty.dead) == (timedelta(0), 0, 0, 0)
    await bury(redis, outbox)
    await add(redis, 3)
    (delivery,) = await outbox.take(1)
    await outbox.set_aside(delivery, attempts=1, error="", pause=HOUR)

    backlog = await outbox.backlog()
    assert (backlog.queued, backlog.retries, backlog.dead) == (2, 1, 1)
    assert backlog.lag < timedelta(seconds=5)


@pytest.mark.parametrize("key", [RETRY, EXPIRY])
async def test_what_is_overdue_is_lag_and_what_waits_is_not(redis: Redis, outbox: RedisOutbox, key: str) -> None:
    now = int(time.time() * 1000)
    await redis.zadd(key, {"one": now + 60_000})
    assert (await outbox.backlog()).lag == timedelta(0)

    await redis.zadd(key, {"other": now - 60_000})
    assert timedelta(seconds=59) < (await outbox.backlog()).lag < timedelta(seconds=65)


async def test_an_event_that_nobody_took_is_lag(redis: Redis, outbox: RedisOutbox) -> None:
    old = int(time.time() * 1000) - 60_000
    await redis.xadd(STREAM, dict[Any, Any](ENTRY), id=f"{old}-0")
    await add(redis)

    assert timedelta(seconds=59) < (await outbox.backlog()).lag < timedelta(seconds=65)


async def test_every_key_has_a_ttl_at_every_step(redis: Redis, outbox: RedisOutbox) -> None:
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


async def test_all_keys_lie_in_one_slot() -> None:
    assert len({key_slot(key.encode()) for key in (STREAM, EXPIRY, RETRY, DEAD, LETTERS)}) == 1


async def test_without_redis_nothing_is_taken() -> None:
    nowhere = connect("unix:///nonexistent/socket", timeout=0.1)

    with pytest.raises(StoreUnavailable):
        await make(nowhere).take(1)
    await nowhere.aclose()


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not recorded"])
async def test_whatever_is_told_of_a_verification_its_creation_is_told_first(
    redis: Redis, outbox: RedisOutbox, *, recorded: bool
) -> None:
    """The call may not have been recorded: the worker died, or the code was typed before the provider answered."""
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

    told = [(delivery.event.type, delivery.event.status) for delivery in await outbox.take(10)]

    assert told == [("verification.created", "pending"), ("verification.verified", "verified")]


@pytest.mark.parametrize("ending", ["verified", "canceled"])
async def test_what_ended_does_not_expire_when_a_resend_is_refused_after_its_last_code(
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

    told = [delivery.event.type for delivery in await outbox.take(10)]
    assert told == ["verification.created", f"verification.{ending}"]
