"""Whose word is taken on where a request comes from: that of the proxies of the settings, and nobody else's."""

from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
from asgi_lifespan import LifespanManager
from redis.asyncio import Redis
from starlette.types import ASGIApp

from app.cli.serving import uvicorn_options
from app.main import create_app
from app.settings import Settings
from app.verification.call_urls import CallbackUrls
from app.verification.keys import derive_key
from app.verification.ports import CallId
from tests.integration.conftest import SECRET_KEY, sandbox_settings

PROVIDER, STRANGER, PROXY = "185.54.48.1", "192.0.2.1", "10.1.2.3"
SECRET_PATH = CallbackUrls(derive_key(SECRET_KEY.encode(), "hooks"), prefix="/hooks/plusofon/").url_of(
    CallId("vrf_0a11b22c33d44e55f667788", 1)
)


def served(settings: Settings) -> ASGIApp:
    """Make the application with what uvicorn puts around it."""
    options = {**uvicorn_options(settings), "log_config": None, "ssl_certfile": None}
    config = uvicorn.Config(create_app(settings), **options)
    config.load()
    app: ASGIApp = config.loaded_app
    return app


async def post_hook(app: ASGIApp, *, peer: str, forwarded_for: str | None) -> int:
    """Post a hook of a call that nobody knows; tells the status. A hook from an address that may not is a 404."""
    headers = {"X-Forwarded-For": forwarded_for} if forwarded_for else {}
    transport = httpx.ASGITransport(app=app, client=(peer, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://verify") as client:
        answer = await client.post(SECRET_PATH, json={"key": "k", "phone": "+79001234567"}, headers=headers)
    return answer.status_code


@pytest.fixture
async def behind_proxy(redis: Redis, redis_url: str) -> AsyncIterator[ASGIApp]:
    settings = sandbox_settings(
        redis_url, plusofon={"hook_addresses": PROVIDER}, proxy={"addresses": "10.0.0.0/8, 172.16.0.1"}
    )
    async with LifespanManager(served(settings)) as manager:
        yield manager.app


@pytest.fixture
async def by_itself(redis: Redis, redis_url: str) -> AsyncIterator[ASGIApp]:
    async with LifespanManager(served(sandbox_settings(redis_url, plusofon={"hook_addresses": PROVIDER}))) as manager:
        yield manager.app


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "status"),
    [
        (PROXY, PROVIDER, 204),
        ("172.16.0.1", PROVIDER, 204),
        (PROXY, STRANGER, 404),
        (PROXY, f"{PROVIDER}, {STRANGER}", 404),  # what the caller wrote itself comes first, and is not believed
        (STRANGER, PROVIDER, 404),
        (PROVIDER, STRANGER, 204),
        (PROXY, None, 404),
        (f"::ffff:{PROXY}", PROVIDER, 204),  # as a socket that takes IPv4 and IPv6 tells it
        (f"::FFFF:{PROXY}", f"::ffff:{PROVIDER}", 204),
        ("::ffff:172.16.0.1", f"{PROVIDER}, ::ffff:10.0.0.7", 204),
        ("::ffff:a01:203", PROVIDER, 204),
        (f"::ffff:{PROVIDER}", None, 204),
        (f"::ffff:{STRANGER}", PROVIDER, 404),
        (PROXY, f"{PROVIDER}:443", 204),
        (PROXY, f"[::ffff:{PROVIDER}]:443", 204),
        (f"::{PROXY}", PROVIDER, 404),
        ("::ffff:172.16.0.2", PROVIDER, 404),
    ],
)
async def test_only_a_proxy_of_the_settings_is_believed(
    behind_proxy: ASGIApp, peer: str, forwarded_for: str | None, status: int
) -> None:
    assert await post_hook(behind_proxy, peer=peer, forwarded_for=forwarded_for) == status


async def test_lists_may_be_written_in_the_mapped_form(redis: Redis, redis_url: str) -> None:
    settings = sandbox_settings(
        redis_url,
        plusofon={"hook_addresses": f"::ffff:{PROVIDER}"},
        proxy={"addresses": "::ffff:10.0.0.0/104"},
    )
    assert [str(network) for network in settings.proxy.addresses] == ["10.0.0.0/8"]
    async with LifespanManager(served(settings)) as manager:
        assert await post_hook(manager.app, peer=PROXY, forwarded_for=PROVIDER) == 204
        assert await post_hook(manager.app, peer=STRANGER, forwarded_for=PROVIDER) == 404


@pytest.mark.parametrize("peer", [PROXY, STRANGER, "127.0.0.1"])
async def test_without_that_setting_nobody_is(by_itself: ASGIApp, peer: str) -> None:
    assert await post_hook(by_itself, peer=peer, forwarded_for=PROVIDER) == 404
    assert await post_hook(by_itself, peer=PROVIDER, forwarded_for=STRANGER) == 204
