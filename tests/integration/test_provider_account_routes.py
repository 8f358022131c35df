"""``GET /provider/account``: access and content."""

import hashlib

import httpx
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.settings import Settings
from tests.integration.conftest import run, sandbox_settings


async def test_the_provider_account_requires_an_admin_key(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    def keys(name: str) -> str:
        return f"{name}:{hashlib.sha256(name.encode()).hexdigest()}"

    async def statuses(**settings: object) -> list[int]:
        headers: list[dict[str, str]] = [{}, *({"Authorization": f"Bearer {name}"} for name in ("shop", "ops"))]
        async with run(create_app(sandbox_settings(redis_url, **settings), network)) as api:
            return [(await api.get("/provider/account", headers=header)).status_code for header in headers]

    api_keys, admin_keys = {"keys": keys("shop")}, {"keys": keys("ops")}
    assert await statuses(api=api_keys, admin=admin_keys) == [401, 401, 200]
    assert await statuses(api=api_keys) == [401, 401, 401]
    assert await statuses(admin=admin_keys) == [401, 401, 200]
    assert await statuses() == [200, 200, 200]  # a sandbox without keys


async def test_the_provider_account_shows_names_and_balance_but_no_token(
    api: httpx.AsyncClient, settings: Settings
) -> None:
    answer = await api.get("/provider/account")

    assert answer.json() == {"accounts": [{"id": "7", "name": "Sandbox"}], "balance_rub": 10000.0}
    assert "token" not in answer.text
