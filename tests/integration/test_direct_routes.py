"""A request that is passed straight to its handler is answered as FastAPI would have it answered."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRouter
from redis.asyncio import Redis
from starlette.types import Receive, Scope, Send

from app.api import routing
from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.settings import Settings
from app.verification.check import CheckVerification
from tests.integration.conftest import run, sandbox_settings

PHONE = "+79001234567"
JSON = {"Content-Type": "application/json"}
KEYED = {**JSON, "Idempotency-Key": "k1"}
UNKNOWN = b'{"verification_id": "vrf_00000000000000000000000", "code": "123456"}'
START = b'{"phone": "+79001234567"}'

# Method, path, headers and body; those of START and of the key depend on what came before. {id} is the latest started.
REQUESTS: list[tuple[str, str, Mapping[str, str], bytes]] = [
    ("POST", "/verify/check", JSON, UNKNOWN),
    ("POST", "/verify/check", JSON, b"{"),
    ("POST", "/verify/check", JSON, b"[]"),
    ("POST", "/verify/check", JSON, b""),
    ("POST", "/verify/check", {}, UNKNOWN),
    ("POST", "/verify/check", JSON, b" " * 17_000),
    ("POST", "/verify/check", {**JSON, "Idempotency-Key": ""}, UNKNOWN),
    ("POST", "/verify/check", JSON, b'{"phone": "+12025550123", "code": "123456"}'),
    ("POST", "/verify/check?code=123456", JSON, UNKNOWN),
    ("POST", "/verify/start", KEYED, START),
    ("POST", "/verify/start", KEYED, START),
    ("POST", "/verify/start", KEYED, START + b" "),
    ("POST", "/verify/start", JSON, START),
    ("POST", "/verify/start", JSON, b'{"phone": "+79001234567", "purpose": "lottery"}'),
    ("POST", "/verify/check", JSON, b'{"phone": "+79001234567", "code": "1234567"}'),
    ("POST", "/verify/check", JSON, b'{"phone": "+79001234567"}'),
    ("POST", "/verify/check/", JSON, UNKNOWN),
    ("POST", "//verify/check", JSON, UNKNOWN),
    ("GET", "/verify/check", {}, b""),
    ("HEAD", "/verify/check", {}, b""),
    ("PUT", "/verify/check", JSON, UNKNOWN),
    ("OPTIONS", "/verify/start", {}, b""),
    ("GET", "/verify/{id}", {}, b""),
    ("GET", "/verify/{id}?code=123456", {}, b""),
    ("GET", "/verify/{id}", JSON, b"{}"),
    ("HEAD", "/verify/{id}", {}, b""),
    ("GET", "/verify/{id}/", {}, b""),
    ("GET", "/verify/{id}%0A", {}, b""),
    ("GET", "/verify/%7Bid%7D%2Fcancel", {}, b""),
    ("GET", "/verify/%D1%84%ff", {}, b""),
    ("GET", "/verify/", {}, b""),
    ("GET", "/verify/vrf_00000000000000000000000", {}, b""),
    ("PUT", "/verify/{id}", JSON, b"{}"),
    ("GET", "/verify/{id}/cancel", {}, b""),
    ("POST", "/verify/{id}/cancel", {}, b""),
    ("POST", "/verify/{id}/cancel", JSON, b"{"),
    ("POST", "/verify/vrf_00000000000000000000000/cancel", {}, b""),
    ("HEAD", "/verify/{id}/cancel", {}, b""),
    ("GET", "/verify/{id}", {}, b""),
]
OF_A_REQUEST = {"x-request-id", "content-length", "location", "retry-after", "instance", "detail", "retry_after"}
OF_A_VERIFICATION = {"verification_id", "created_at", "expires_at", "expires_in", "resend_in"}
CHANGING = OF_A_REQUEST | OF_A_VERIFICATION


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return sandbox_settings(redis_url, call={"cooldowns_seconds": "60"})


class NoRoute:
    """No route is an instance of it."""


@pytest.fixture
async def both(
    redis: Redis, settings: Settings, network: VirtualNetwork, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Return a client of the application, and one of the same application without the direct way."""
    async with run(create_app(settings, network)) as direct:
        monkeypatch.setattr(routing, "JsonRoute", NoRoute)
        async with run(create_app(settings, network)) as through_fastapi:
            yield [direct, through_fastapi]


async def answers(client: httpx.AsyncClient, redis: Redis) -> list[tuple[int, dict[str, str], Any]]:
    """Send all requests; return the answers without what is never twice the same."""
    await redis.flushall()
    found, started = [], ""
    for method, path, headers, body in REQUESTS:
        answer = await client.request(method, path.replace("{id}", started), headers=headers, content=body)
        stable = {name: value for name, value in answer.headers.items() if name not in CHANGING}
        content = answer.json() if answer.content else {}
        started = content.get("verification_id") or started
        found.append((answer.status_code, stable, {name: it for name, it in content.items() if name not in CHANGING}))
    return found


async def test_both_ways_answer_alike(both: list[httpx.AsyncClient], redis: Redis) -> None:
    direct, through_fastapi = both

    first, second = await answers(direct, redis), await answers(through_fastapi, redis)

    for request, one, other in zip(REQUESTS, first, second, strict=True):
        assert one == other, request
    assert {status for status, _, _ in first} == {200, 201, 400, 404, 405, 413, 422, 429}
    assert [content["status"] for _, _, content in first if "checks_left" in content][-1] == "canceled"


async def test_an_unexpected_error_is_a_500_both_ways(
    both: list[httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(CheckVerification, "by_id", fail)

    found = [await client.post("/verify/check", headers=JSON, content=UNKNOWN) for client in both]

    assert [answer.status_code for answer in found] == [500, 500]
    assert [answer.json()["type"] for answer in found] == ["about:blank"] * 2


async def test_checks_and_reads_do_not_pass_the_router(
    redis: Redis, settings: Settings, network: VirtualNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: APIRouter, scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the router was asked")

    async with run(create_app(settings, network)) as api:
        monkeypatch.setattr(APIRouter, "__call__", fail)

        assert (await api.post("/verify/check", headers=JSON, content=UNKNOWN)).status_code == 404
        assert (await api.get("/verify/vrf_00000000000000000000000")).status_code == 404
        assert (await api.get("/livez")).status_code == 500


async def test_a_path_is_that_of_a_route_only_behind_the_root_path(redis: Redis, redis_url: str) -> None:
    settings = sandbox_settings(redis_url, public_url="http://verify/verify/")
    async with run(create_app(settings, VirtualNetwork())) as api:
        other, right = [
            (await api.post(path, headers=JSON, content=UNKNOWN)).json() for path in ("/check", "/verify/check")
        ]

    assert (other["status"], other["type"]) == (404, "about:blank")
    assert (right["status"], right["type"]) == (404, "/problems/verification-not-found")
