"""A start that placed no call leaves nothing behind: no count, no note, and another channel may be tried."""

import asyncio
from functools import partial
from http import HTTPStatus
from operator import not_

import httpx
import pytest
from redis.asyncio import Redis

from app.main import create_app
from app.providers.circuit import ProtectedSender
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.store.verifications import RedisVerificationStore
from app.verification.model import CallOutcome
from app.verification.ports import CallOrder
from app.verification.store_requests import DeferredWrites
from tests.integration.conftest import run, sandbox_settings
from tests.limit_keys import is_limit, read_limit
from tests.waiting import eventually

KEY, CHANNELS = "8e03978e-40d5-43dd-bc93-6894a57f9324", ["voice", "flash_call"]


async def start(api: httpx.AsyncClient, phone: str, *, key: str = KEY, one: bool = False) -> httpx.Response:
    body = {"phone": phone} if one else {"phone": phone, "channels": CHANNELS}
    return await api.post("/verify/start", json=body, headers={"Idempotency-Key": key})


async def counted(redis: Redis) -> dict[str, object]:
    """Return what limits and the fraud guard have counted, by key."""
    keys = [key.decode() for key in await redis.keys() if isinstance(key, bytes)]
    limits = {key: await read_limit(redis, key) for key in keys if is_limit(key)}
    return {
        key: limit for key, limit in limits.items() if limit["total"] or any(calls for _, calls, _ in limit["calls"])
    }


@pytest.mark.standalone  # on a cluster a reservation whose reply is lost stays counted in limits above 64
async def test_a_start_that_too_few_replicas_confirm_counts_nowhere(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    """The script has run, and nobody knows when."""
    replicated = {"url": redis_url, "timeout_seconds": 1, "wait_replicas": 1}
    async with run(create_app(sandbox_settings(redis_url, redis=replicated), network)) as api:
        answers = await asyncio.gather(*(start(api, f"+7916123450{n}", key=f"key-{n}", one=True) for n in range(5)))
        assert {answer.status_code for answer in answers} == {503}
        await eventually(partial(counted, redis), not_)  # refunds come later
    assert not [key for key in await redis.keys() if b":p:" in key]
    assert network.latest_calls(1) == []


async def test_with_a_key_another_channel_is_tried_after_a_slow_refusal(
    redis_url: str, network: VirtualNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer than the service waits for Redis."""
    place = ProtectedSender.place

    async def take_longer(sender: ProtectedSender, order: CallOrder) -> CallOutcome:
        await asyncio.sleep(0.6)
        return await place(sender, order)

    monkeypatch.setattr(ProtectedSender, "place", take_longer)
    hasty = {"url": redis_url, "timeout_seconds": 0.5}
    async with run(create_app(sandbox_settings(redis_url, redis=hasty, channels=CHANNELS), network)) as api:
        answer = await eventually(  # a busy machine may not connect within the short time-out
            partial(start, api, MagicNumber.VOICE_REFUSED),
            lambda answer: answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE,
        )

    assert (answer.status_code, answer.json()["channel"]) == (201, "flash_call")
    assert len(network.calls_of(MagicNumber.VOICE_REFUSED)) == 1


async def test_a_key_is_free_after_a_refusal_even_if_a_call_was_noted_that_never_was(
    redis: Redis, redis_url: str, network: VirtualNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died between the note and the storing of the call, and the phone is in its cooldown now."""

    async def dies(*_: object) -> None:
        raise asyncio.CancelledError

    async with run(create_app(sandbox_settings(redis_url, channels=CHANNELS), network)) as api:
        with monkeypatch.context() as patched:
            patched.setattr(RedisVerificationStore, "start", dies)
            patched.setattr(DeferredWrites, "write_later", lambda *_: None)
            with pytest.raises(asyncio.CancelledError):
                await start(api, "+79161234567")
        (name,) = await redis.keys("pv3{i:*")
        await redis.hset(name, mapping={"begun": "vrf_0a11b22c33d44e55f667788:1", "claimed_until": "0"})
        assert (await start(api, "+79161234567", key="other")).status_code == 201

        assert (await start(api, "+79161234567")).status_code == 429
        assert (await start(api, "+79217654321")).status_code == 201
