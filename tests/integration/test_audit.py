"""What admin keys change is recorded before it is changed, and can be listed."""

import hashlib
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi.routing import APIRoute
from redis.asyncio import Redis

from app.api.audit import record_change
from app.main import create_api, create_app
from app.sandbox.network import VirtualNetwork
from tests.integration.conftest import run, sandbox_settings

KEYS = {"anna": "key-of-anna", "boris": "key-of-boris"}
READING = {"/admin/attempts/find"}  # a POST that changes nothing


def by(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


@pytest.fixture
async def api(redis: Redis, redis_url: str, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    keys = ",".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in KEYS.items())
    async with run(create_app(sandbox_settings(redis_url, admin={"keys": keys}), network)) as client:
        yield client


async def test_each_change_is_listed_with_who_and_when_the_latest_first(api: httpx.AsyncClient, redis: Redis) -> None:
    for name, number_range in (("anna", "+79001234"), ("boris", "+79005678")):
        await api.delete(f"/admin/guard/{number_range}", headers=by(name))
    await api.get("/admin/guard", headers=by("anna"))
    await api.delete("/admin/guard/+79001111", headers={"Authorization": "Bearer wrong"})

    entries = (await api.get("/admin/audit", headers=by("anna"))).json()["entries"]

    assert [(entry["admin"], entry["action"]) for entry in entries] == [
        ("boris", "DELETE /admin/guard/+79005678"),
        ("anna", "DELETE /admin/guard/+79001234"),
    ]
    older = await api.get("/admin/audit", params={"before": entries[0]["at"], "limit": 1}, headers=by("anna"))
    assert older.json()["entries"] == entries[1:]
    assert 0 < await redis.pttl("pv3{audit}") <= 400 * 24 * 3600 * 1000


async def test_a_phone_in_a_path_is_not_recorded(api: httpx.AsyncClient, redis: Redis) -> None:
    await api.delete("/admin/guard/+79001234567", headers=by("anna"))

    assert "9001234567" not in str(await redis.xrange("pv3{audit}"))


async def test_nothing_changes_that_cannot_be_recorded(api: httpx.AsyncClient, redis: Redis) -> None:
    await redis.set("pv3{audit}", "not a stream", ex=60)

    answer = await api.delete("/admin/guard/+79001234", headers=by("anna"))

    assert answer.status_code == 503


async def test_the_audit_needs_an_admin_key(api: httpx.AsyncClient) -> None:
    assert (await api.get("/admin/audit")).status_code == 401


def test_every_admin_route_that_changes_something_is_audited() -> None:
    routes = [route for route in create_api().routes if isinstance(route, APIRoute) and route.path.startswith("/admin")]
    changing = [route for route in routes if route.methods != {"GET"} and route.path not in READING]

    assert {route.path for route in changing} >= {"/admin/guard/{range}", "/admin/phones/erase"}
    for route in changing:
        assert record_change in [dependency.dependency for dependency in route.dependencies], route.path
