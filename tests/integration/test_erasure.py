"""Erasure of a phone: no data about it is left in Redis, and the data of other phones stays."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import msgpack
import pytest
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.store.call_following import RedisCallQueue
from app.store.erasure import Erased, RedisPhoneEraser
from app.store.layout import PhoneName
from app.store.scripts import Argument, Script, ScriptRunner
from app.store.webhooks import ADD_DEAD, RedisOutbox
from app.verification.keys import derive_key
from app.verification.phone import Phone
from app.verification.ports import CallId
from tests.ageing import age
from tests.attempts import attempts_on
from tests.integration.conftest import SECRET_KEY, run, sandbox_settings
from tests.keys import stored
from tests.webhook_events import add_events, make_due, outbox_key

PHONE, OTHER = Phone("+79001234567"), Phone("+79161234568")
PHONE_KEY = derive_key(SECRET_KEY.encode(), "phone")
WEBHOOK = {"webhook_url": "http://127.0.0.1:1/hook", "webhook_secret": "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"}


async def dump_redis(redis: Redis) -> str:
    """Return all keys and values of Redis as text."""
    dump: list[object] = []
    for key in await redis.keys():
        match await redis.type(key):
            case b"hash":
                value: object = await redis.hgetall(key)
            case b"zset":
                value = await redis.zrange(key, 0, -1, withscores=True)
            case b"stream":
                value = await redis.xrange(key)
            case _:
                value = await redis.get(key)
        dump.append((key, value))
    return repr(dump)


def traces_of(phone: Phone) -> tuple[str, str]:
    """Return the texts that identify a phone in Redis: its digits and its keyed digest."""
    return phone.e164.removeprefix("+"), PhoneName.from_phone(PHONE_KEY, phone).digest


def eraser(redis: Redis) -> RedisPhoneEraser:
    runner = ScriptRunner(redis, timeout=5)
    return RedisPhoneEraser(runner, attempts_on(runner, phone_key=PHONE_KEY), phone_key=PHONE_KEY)


async def start(api: httpx.AsyncClient, phone: Phone, key: str, purpose: str) -> str:
    """Start a verification whose reference has the phone, as no client should do."""
    body = {"phone": phone.e164, "purpose": purpose, "reference": f"of {phone.e164}"}
    answer = await api.post("/verify/start", json=body, headers={"Idempotency-Key": key})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["verification_id"])


@pytest.fixture
def network() -> VirtualNetwork:
    return VirtualNetwork(pace=0, balance=Decimal(100))


async def test_erasure_leaves_no_trace_of_the_phone_in_redis(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    settings = sandbox_settings(
        redis_url,
        clients={"sandbox": WEBHOOK},
        call={"cooldowns_seconds": [0]},
    )
    async with run(create_app(settings, network)) as api:
        for phone in (PHONE, OTHER):
            first = await start(api, phone, f"first-{phone.e164}", "login")
            code = network.calls_of(phone.e164)[-1].heard
            checked = await api.post(
                "/verify/check",
                json={"verification_id": first, "code": code},
                headers={"Idempotency-Key": f"check-{phone.e164}"},
            )
            assert checked.json()["phone"] == phone.e164
            await start(api, phone, f"second-{phone.e164}", "login")
            await start(api, phone, f"third-{phone.e164}", "password_reset")
    await move_events_to_retry_and_dead_letters(redis)
    before = await dump_redis(redis)
    assert all(trace in before for phone in (PHONE, OTHER) for trace in traces_of(phone))

    done = await eraser(redis).erase(PHONE)

    assert (done.phone, done.verifications, done.calls, done.answers, done.attempts) == (True, 3, 3, 4, 3)
    assert done.events >= 3
    after = await dump_redis(redis)
    assert not [trace for trace in traces_of(PHONE) if trace in after]
    assert all(trace in after for trace in traces_of(OTHER))
    assert after.count(OTHER.e164.removeprefix("+")) == before.count(OTHER.e164.removeprefix("+"))


async def move_events_to_retry_and_dead_letters(redis: Redis) -> None:
    """Schedule one event of each phone for a retry, make one a dead letter, and hold one: all are out of the outbox."""
    outbox = RedisOutbox(ScriptRunner(redis, timeout=5))
    await age(redis, timedelta(minutes=1))  # the service, before it was stopped, may have taken some
    buckets = [PhoneName.from_phone(PHONE_KEY, phone).bucket for phone in (PHONE, OTHER)]
    await make_due(redis, *buckets)
    taken = await outbox.take(100)
    for phone in (PHONE, OTHER):
        mine = [delivery for delivery in taken if delivery.event.phone == phone]
        assert len(mine) >= 3
        await outbox.set_aside(mine[0], attempts=1, error="status 500", pause=timedelta(hours=1))
        await outbox.set_aside(mine[1], attempts=9, error="status 500", pause=None)


async def test_erased_calls_are_no_longer_followed_even_with_a_high_call_number(redis: Redis) -> None:
    name = PhoneName.from_phone(PHONE_KEY, PHONE)
    record, runner = name.new_record(), ScriptRunner(redis, timeout=5)
    await redis.set(stored(record.key), msgpack.packb({"q": name.digest, "n": "25", "t25": "initiated"}))
    await RedisCallQueue(runner).schedule(CallId(record.verification_id, 25), timedelta(0))

    done = await eraser(redis).erase(PHONE)

    assert done.calls == 1
    assert not await RedisCallQueue(runner).claim(1)


async def test_erasing_an_unknown_phone_erases_nothing(redis: Redis) -> None:
    done = await eraser(redis).erase(PHONE)

    assert done == Erased(phone=False, verifications=0, calls=0, events=0, answers=0, attempts=0)
    assert not done


async def test_erasure_finds_every_event_among_thousands(redis: Redis) -> None:
    bucket = PhoneName.from_phone(PHONE_KEY, PHONE).bucket
    for number in range(0, 2500, 500):
        await add_events(redis, buckets=[bucket], phone=PHONE.e164[1:], due_ago=number)
        await add_events(redis, 499, buckets=[bucket], phone=OTHER.e164[1:], due_ago=number)

    done = await eraser(redis).erase(PHONE)

    assert done.events == 5
    assert await redis.zcard(outbox_key(bucket)) == 2495


@pytest.mark.parametrize("pause", [timedelta(hours=1), None])
async def test_an_event_that_is_erased_during_its_delivery_does_not_come_back(
    redis: Redis, pause: timedelta | None
) -> None:
    await add_events(redis, buckets=[PhoneName.from_phone(PHONE_KEY, PHONE).bucket], phone=PHONE.e164[1:])
    outbox = RedisOutbox(ScriptRunner(redis, timeout=5))
    (taken,) = await outbox.take(1)

    done = await eraser(redis).erase(PHONE)

    await outbox.set_aside(taken, attempts=1, error="status 500", pause=pause)
    assert done.events == 1
    assert traces_of(PHONE)[0] not in await dump_redis(redis)


async def test_an_event_that_is_erased_while_it_becomes_a_dead_letter_does_not_come_back(redis: Redis) -> None:
    """The letter is written after the dead letters were searched."""

    class Erasing(ScriptRunner):
        async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:  # noqa: ANN401 - as inherited
            if script is ADD_DEAD:
                await eraser(redis).erase(PHONE)
            return await super().run(script, keys, arguments)

    await add_events(redis, buckets=[PhoneName.from_phone(PHONE_KEY, PHONE).bucket], phone=PHONE.e164[1:])
    outbox = RedisOutbox(Erasing(redis, timeout=5))
    (taken,) = await outbox.take(1)

    await outbox.set_aside(taken, attempts=7, error="status 500", pause=None)
    assert traces_of(PHONE)[0] not in await dump_redis(redis)


async def test_the_admin_route_erases_a_phone_and_says_how_much(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    async with run(create_app(sandbox_settings(redis_url), network)) as api:
        await start(api, PHONE, "first", "login")
        await start(api, OTHER, "second", "login")
        erased = await api.post("/admin/phones/erase", json={"phone": PHONE.e164})
        again = await api.post("/admin/phones/erase", json={"phone": PHONE.e164})
        (entry,) = {entry["action"] for entry in (await api.get("/admin/audit")).json()["entries"]}

    assert erased.json() | {"phone": True, "verifications": 1, "calls": 1, "attempts": 1} == erased.json()
    assert not any(again.json().values())
    assert entry == "POST /admin/phones/erase"
    after = await dump_redis(redis)
    assert not [trace for trace in traces_of(PHONE) if trace in after]
    assert all(trace in after for trace in traces_of(OTHER))


async def test_the_admin_route_refuses_what_is_no_phone_and_a_request_without_a_key(redis_url: str) -> None:
    keys = {"keys": [f"ops:{'0' * 64}"]}
    async with run(create_app(sandbox_settings(redis_url))) as api:
        refused = await api.post("/admin/phones/erase", json={"phone": "112"})
    async with run(create_app(sandbox_settings(redis_url, admin=keys))) as api:
        keyless = await api.post("/admin/phones/erase", json={"phone": PHONE.e164})

    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/phone-not-callable")
    assert (keyless.status_code, keyless.json()["type"]) == (401, "/problems/unauthorized")
