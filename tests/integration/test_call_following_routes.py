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
from tests.integration.conftest import PACE, run
from tests.integration.test_verification import hear, start


async def test_call_following_updates_the_state_of_the_call(api: httpx.AsyncClient, redis: Redis) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    await hear(api)
    await asyncio.sleep(PACE * 6)

    assert await wait_for_new_call_state(api, redis, verification_id) == {"status": "completed"}


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
    await asyncio.sleep(PACE * 6)

    assert await wait_for_new_call_state(api, redis, verification_id) == state


async def test_an_unknown_provider_status_is_passed_on_and_the_call_is_still_followed(
    redis: Redis, redis_url: str, settings: Settings
) -> None:
    async with run(create_app(settings, VirtualNetwork(pace=0.5))) as api:
        verification_id = (await start(api, MagicNumber.ODD_STATUS)).json()["verification_id"]
        await asyncio.sleep(0.6)
        odd = await wait_for_new_call_state(api, redis, verification_id)
        assert odd == {"status": "initiated", "provider_status": "rerouted"}

        await asyncio.sleep(2)
        assert await wait_for_new_call_state(api, redis, verification_id) == {"status": "completed"}


async def wait_for_new_call_state(api: httpx.AsyncClient, redis: Redis, verification_id: str) -> dict[str, str]:
    """Wait until call following has updated the call once more, and return its state; Redis time is moved forward."""
    before = (await api.get(f"/verify/{verification_id}")).json()["call"]
    call = before
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3):
            while call == before:
                await age(redis, timedelta(seconds=15))
                await asyncio.sleep(0.05)
                call = (await api.get(f"/verify/{verification_id}")).json()["call"]
    return dict(call)
