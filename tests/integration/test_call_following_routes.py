"""Call following through the whole application: the state of a call as the API shows it."""

import asyncio
import contextlib
from datetime import timedelta

import httpx
import pytest
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.settings import Settings
from tests.ageing import age
from tests.integration.conftest import run
from tests.integration.test_verification import hear, start
from tests.waiting import PATIENCE, eventually

STEPS = 9  # of 15 s: those for two states are together shorter than a code is valid


async def test_call_following_updates_the_state_of_the_call(api: httpx.AsyncClient, redis: Redis) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    await hear(api)

    await require_call_state(api, redis, verification_id, {"status": "completed"})


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (MagicNumber.BUSY, {"status": "busy"}),
        (MagicNumber.NO_ANSWER, {"status": "no_answer"}),
        (MagicNumber.FAILED, {"status": "failed"}),
    ],
)
async def test_call_following_reports_why_a_call_failed(
    api: httpx.AsyncClient, redis: Redis, number: MagicNumber, state: dict[str, str]
) -> None:
    verification_id = (await start(api, number)).json()["verification_id"]

    await require_call_state(api, redis, verification_id, state)


async def test_an_unknown_provider_status_is_passed_on_and_the_call_is_still_followed(
    redis: Redis, redis_url: str, settings: Settings
) -> None:
    now = 0.0
    async with run(create_app(settings, VirtualNetwork(pace=1, monotonic=lambda: now))) as api:
        verification_id = (await start(api, MagicNumber.ODD_STATUS)).json()["verification_id"]
        now += 1.2
        odd = {"status": "initiated", "provider_status": "rerouted"}
        await require_call_state(api, redis, verification_id, odd)

        now += 4
        await require_call_state(api, redis, verification_id, {"status": "completed"})


async def require_call_state(api: httpx.AsyncClient, redis: Redis, verification_id: str, state: dict[str, str]) -> None:
    """Wait until call following has found a state; Redis time is moved forward, but not to the end of the code."""

    async def read() -> dict[str, str]:
        return dict((await api.get(f"/verify/{verification_id}")).json()["call"])

    for _ in range(STEPS):
        await age(redis, timedelta(seconds=15))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE / STEPS):
                await eventually(read, lambda found: found == state)
                return
    assert await read() == state
