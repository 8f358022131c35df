"""Redis fails and recovers: the service answers 503 at once, places no call, and needs no restart."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from app.main import create_app
from app.sandbox.embedded import EmbeddedServer
from app.sandbox.network import VirtualNetwork
from app.store.connection import connect
from tests.integration.conftest import run, sandbox_settings
from tests.waiting import eventually, timing

PHONE = "+79001234567"
TIMEOUT = 2.0  # seconds


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
async def server_pid(server: EmbeddedServer) -> int:
    redis = connect(server.url, timeout=20)
    pid = int((await redis.info("server"))["process_id"])
    await redis.aclose()
    return pid


@pytest.fixture
async def api(server: EmbeddedServer, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    settings = sandbox_settings(server.url, redis={"url": server.url, "timeout_seconds": TIMEOUT})
    async with run(create_app(settings, network)) as client:
        yield client


async def refused_everywhere(api: httpx.AsyncClient, verification_id: str) -> float:
    """Send every kind of request at once; return how long the slowest refusal took."""
    async with timing() as seconds:
        answers = await asyncio.gather(
            api.post("/verify/start", json={"phone": "+79007654321"}),
            api.post("/verify/check", json={"verification_id": verification_id, "code": "123456"}),
            api.post("/verify/check", json={"phone": PHONE, "code": "123456"}),
            api.get(f"/verify/{verification_id}"),
            api.post(f"/verify/{verification_id}/cancel"),
        )
        took = seconds()
    assert [answer.status_code for answer in answers] == [503] * 5
    assert {answer.json()["type"] for answer in answers} == {"/problems/store-unavailable"}
    return took


async def test_a_killed_redis_is_a_503_until_it_is_restarted(
    api: httpx.AsyncClient, server_pid: int, network: VirtualNetwork
) -> None:
    verification_id = (await api.post("/verify/start", json={"phone": PHONE})).json()["verification_id"]
    os.kill(server_pid, signal.SIGKILL)

    assert await refused_everywhere(api, verification_id) < TIMEOUT
    assert network.calls_of("+79007654321") == []
    ready = await api.get("/readyz")
    assert (ready.status_code, (await api.get("/livez")).status_code) == (503, 200)
    assert ready.json()["reasons"]

    await eventually(lambda: api.get("/readyz"), lambda answer: answer.status_code == 200)
    assert (await api.post("/verify/start", json={"phone": PHONE})).status_code == 201


async def test_a_redis_that_hangs_is_a_503_within_its_timeout(
    api: httpx.AsyncClient, server_pid: int, network: VirtualNetwork
) -> None:
    verification_id = (await api.post("/verify/start", json={"phone": PHONE})).json()["verification_id"]
    os.kill(server_pid, signal.SIGSTOP)
    try:
        took = await refused_everywhere(api, verification_id)
        assert took < 1.95 * TIMEOUT
        assert (await api.get("/readyz")).status_code == 503
    finally:
        os.kill(server_pid, signal.SIGCONT)

    assert (await api.get(f"/verify/{verification_id}")).status_code == 200
    assert network.calls_of("+79007654321") == []


async def test_scripts_missing_in_redis_are_loaded_again(api: httpx.AsyncClient, server: EmbeddedServer) -> None:
    redis = connect(server.url, timeout=20)
    verification_id = (await api.post("/verify/start", json={"phone": PHONE})).json()["verification_id"]
    await redis.script_flush()
    await redis.aclose()

    checks = [api.post("/verify/check", json={"verification_id": verification_id, "code": "000000"}) for _ in range(3)]
    answers = await asyncio.gather(*checks)

    assert sorted(answer.json()["checks_left"] for answer in answers) == [2, 3, 4]


async def test_a_redis_that_refuses_to_write_is_a_503(api: httpx.AsyncClient, server: EmbeddedServer) -> None:
    """Out of memory with noeviction, for example: Redis refused the command, so no call is placed."""
    redis = connect(server.url, timeout=20)
    await redis.config_set("maxmemory", "1")
    answer = await api.post("/verify/start", json={"phone": PHONE})
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/store-unavailable")

    await redis.config_set("maxmemory", "0")
    await redis.aclose()
    assert (await api.post("/verify/start", json={"phone": PHONE})).status_code == 201
