"""A provider that fails, or a low balance: starts are refused without a provider request until it is over."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from app.main import create_app
from app.providers.circuit import CircuitBreaker
from app.sandbox.faults import Fault, Faults
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from tests.ageing import age
from tests.integration.conftest import PACE, run, sandbox_settings
from tests.waiting import PATIENCE, eventually, timing, until

PHONE = "+79031234567"
OTHERS = ("+79031234568", "+79031234569")


async def start(api: httpx.AsyncClient, phone: str) -> httpx.Response:
    return await api.post("/verify/start", json={"phone": phone})


async def test_the_circuit_breaker_opens_on_timeouts_and_closes_after_a_successful_trial(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("app.container.CircuitBreaker", partial(CircuitBreaker, clock=lambda: now))
    plusofon = {"connect_timeout_seconds": 1, "timeout_seconds": 2, "circuit_failures": 2, "circuit_seconds": 1}
    network = VirtualNetwork(pace=PACE)
    async with run(create_app(sandbox_settings(redis_url, plusofon=plusofon), network)) as api:
        for silent in (MagicNumber.NO_REPLY_PLACED, MagicNumber.NO_REPLY_NOT_PLACED):
            assert (await start(api, silent)).json()["call"] == {"status": "unconfirmed"}

        ready = (await api.get("/readyz")).json()
        assert (ready["status"], ready["circuits"]) == ("degraded", {"plusofon": "open"})
        assert "plusofon" in ready["reasons"][0]
        refused = await start(api, PHONE)
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/provider-unavailable")
        assert refused.headers["Retry-After"] == "1"
        assert network.calls_of(PHONE) == []

        now += 1
        assert (await api.get("/readyz")).json()["circuits"] == {"plusofon": "half_open"}
        assert (await start(api, PHONE)).status_code == 201
        assert (await api.get("/readyz")).json() == {
            "status": "ok",
            "reasons": [],
            "circuits": {"plusofon": "closed"},
            "balance": "ok",
        }


async def test_calls_over_the_connection_limit_are_refused_at_once(redis: Redis, redis_url: str) -> None:
    plusofon = {"connect_timeout_seconds": 0.2, "timeout_seconds": PATIENCE, "max_connections": 2}
    network = VirtualNetwork(pace=PACE, faults=Faults(share=1, kinds=(Fault.DELAYED,), delay=3))
    async with run(create_app(sandbox_settings(redis_url, plusofon=plusofon), network)) as api:
        slow = [asyncio.create_task(start(api, phone)) for phone in OTHERS]
        await until(lambda: all(network.calls_of(phone) for phone in OTHERS))
        network.faults = Faults()
        async with timing() as seconds:
            refused = await start(api, PHONE)
            assert seconds() < 1
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/provider-unavailable")
        assert [(await answer).status_code for answer in slow] == [201, 201]
        assert (await start(api, PHONE)).status_code == 201


@pytest.mark.parametrize("balance", [Decimal("9.99"), Decimal(-5)])
async def test_below_the_minimum_balance_no_call_is_placed_until_a_top_up(
    redis: Redis, redis_url: str, balance: Decimal
) -> None:
    network = VirtualNetwork(pace=PACE, balance=balance)
    async with run(create_app(sandbox_settings(redis_url), network)) as api:

        async def level() -> Any:  # noqa: ANN401 - JSON
            return (await api.get("/readyz")).json()["balance"]

        async def is_low() -> bool:
            return bool(await level() == "low")

        async def is_paid() -> bool:
            await age(redis, timedelta(seconds=60))
            return bool(await level() == "ok")

        await eventually(is_low)
        refused = await start(api, PHONE)
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/balance-too-low")
        assert network.calls_of(PHONE) == []
        assert (await api.get("/readyz")).status_code == 200  # codes can still be checked
        assert not await redis.keys("pv3{l[i:]*")  # no limit was used

        network.balance += 500
        await eventually(is_paid)
        assert (await start(api, PHONE)).status_code == 201
