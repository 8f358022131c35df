"""The operator's routes of the fraud guard, through every layer: access, list of blocks, lifting a block."""

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.settings import Settings
from app.verification.errors import RateLimited
from app.verification.keys import derive_key
from app.verification.phone import Phone
from tests.ageing import age
from tests.integration.conftest import run, sandbox_settings
from tests.limiters import count_call, make_limiter
from tests.policies import make_policy
from tests.redis_commands import stopped

CLIENT_KEY, ADMIN_KEY, OLD_ADMIN_KEY = "a-key-of-the-shop", "a-key-of-an-operator", "the-key-before"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
CLIENT = {"Authorization": f"Bearer {CLIENT_KEY}"}
PUMPED, OTHER = "+79001234", "+79161234"


def hashed(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return sandbox_settings(
        redis_url,
        api={"keys": hashed("shop", CLIENT_KEY)},
        admin={"keys": f"{hashed('ops', ADMIN_KEY)},{hashed('ops', OLD_ADMIN_KEY)}"},
    )


@pytest.fixture
async def blocked(redis: Redis, settings: Settings) -> None:
    """Block one range and report one client, after 20 calls of which none was answered."""
    limiter, policy = make_limiter(redis, key=derive_key(settings.names_secret, "phone")), make_policy()
    for number in range(20):
        await count_call(limiter, Phone(f"{PUMPED}{number:03}"), "shop", policy)
    await age(redis, timedelta(minutes=6))
    with pytest.raises(RateLimited):
        await count_call(limiter, Phone(f"{PUMPED}999"), "shop", policy)


async def start(api: httpx.AsyncClient, number_range: str) -> httpx.Response:
    return await api.post("/verify/start", json={"phone": f"{number_range}567"}, headers=CLIENT)


async def test_without_blocks_the_lists_are_empty(api: httpx.AsyncClient) -> None:
    answer = await api.get("/admin/guard", headers=ADMIN)

    assert (answer.status_code, answer.json()) == (200, {"blocks": [], "suspects": []})


@pytest.mark.usefixtures("blocked")
async def test_blocked_ranges_and_reported_clients_are_listed(api: httpx.AsyncClient) -> None:
    found = (await api.get("/admin/guard", headers=ADMIN)).json()

    (block,), (suspect,) = found["blocks"], found["suspects"]
    assert block | {"range": PUMPED, "level": 1, "calls": 20, "successes": 0} == block
    assert suspect | {"client": "shop", "calls": 20, "successes": 0} == suspect
    assert block["since"] < block["until"]
    assert block["since"].endswith("Z")


@pytest.mark.usefixtures("blocked")
async def test_a_blocked_range_gets_no_calls_and_other_ranges_do(
    api: httpx.AsyncClient, network: VirtualNetwork
) -> None:
    refused = await start(api, PUMPED)

    assert refused.status_code == 429
    problem = refused.json()
    assert (problem["type"], problem["limit"]) == ("/problems/rate-limited", "fraud_guard")
    assert 3590 <= problem["retry_after"] <= 3600
    assert refused.headers["Retry-After"] == str(problem["retry_after"])
    assert network.calls_of(f"{PUMPED}567") == []

    assert (await start(api, OTHER)).status_code == 201


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize("key", [ADMIN_KEY, OLD_ADMIN_KEY], ids=["new", "old"])
async def test_a_lifted_range_is_called_again(api: httpx.AsyncClient, key: str) -> None:
    lifted = await api.delete(f"/admin/guard/{PUMPED}", headers={"Authorization": f"Bearer {key}"})

    assert (lifted.status_code, lifted.content) == (204, b"")
    assert (await api.get("/admin/guard", headers=ADMIN)).json()["blocks"] == []
    assert (await start(api, PUMPED)).status_code == 201


@pytest.mark.usefixtures("blocked")
async def test_a_range_may_be_percent_encoded(api: httpx.AsyncClient) -> None:
    assert (await api.delete(f"/admin/guard/%2B{PUMPED[1:]}", headers=ADMIN)).status_code == 204


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize("number_range", [OTHER, "shop", "client:shop", "%20"])
async def test_lifting_a_range_that_is_not_blocked_is_a_404(api: httpx.AsyncClient, number_range: str) -> None:
    answer = await api.delete(f"/admin/guard/{number_range}", headers=ADMIN)

    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json() | {"type": "about:blank", "status": 404} == answer.json()


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize(
    "headers",
    [{}, CLIENT, {"Authorization": f"Basic {ADMIN_KEY}"}, {"Authorization": "Bearer "}],
    ids=["none", "a client's", "wrong scheme", "empty"],
)
async def test_without_an_admin_key_blocks_are_neither_shown_nor_lifted(
    api: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    for attempt in (api.get("/admin/guard", headers=headers), api.delete(f"/admin/guard/{PUMPED}", headers=headers)):
        answer = await attempt
        assert answer.status_code == 401
        assert answer.json()["type"] == "/problems/unauthorized"
        assert "Bearer" in answer.headers["WWW-Authenticate"]

    assert len((await api.get("/admin/guard", headers=ADMIN)).json()["blocks"]) == 1


async def test_an_admin_key_cannot_start_a_verification(api: httpx.AsyncClient, network: VirtualNetwork) -> None:
    answer = await api.post("/verify/start", json={"phone": f"{PUMPED}567"}, headers=ADMIN)

    assert answer.status_code == 401
    assert network.calls_of(f"{PUMPED}567") == []


@pytest.fixture
async def open_api(redis: Redis, redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """The sandbox as `make run` starts it: without any key."""
    async with run(create_app(sandbox_settings(redis_url))) as client:
        yield client


async def test_a_sandbox_without_keys_is_open_to_admin_requests(open_api: httpx.AsyncClient) -> None:
    assert (await open_api.get("/admin/guard")).status_code == 200
    assert (await open_api.delete(f"/admin/guard/{PUMPED}")).status_code == 404
    (entry,) = (await open_api.get("/admin/audit")).json()["entries"]
    assert (entry["admin"], entry["action"]) == ("sandbox", f"DELETE /admin/guard/{PUMPED}")


@pytest.mark.parametrize("section", ["api", "admin"])
async def test_any_configured_key_closes_the_sandbox_to_admin_requests_without_one(
    redis_url: str, section: str
) -> None:
    keys = {"keys": [f"shop:{hashlib.sha256(b'a key').hexdigest()}"]}
    async with run(create_app(sandbox_settings(redis_url, **{section: keys}))) as api:
        for headers in ({}, {"Authorization": "Bearer another"}):
            assert (await api.get("/admin/guard", headers=headers)).status_code == 401
            assert (await api.delete(f"/admin/guard/{PUMPED}", headers=headers)).status_code == 401


async def test_a_redis_outage_is_a_503(redis: Redis, settings: Settings) -> None:
    nowhere = settings.model_copy(update={"redis": settings.redis.model_copy(update={"timeout_seconds": 0.2})})
    async with run(create_app(nowhere)) as api, stopped(redis):
        answer = await api.get("/admin/guard", headers=ADMIN)

    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/store-unavailable"
