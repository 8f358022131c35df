"""``X-Forwarded-For`` is trusted only from the proxies of ``PROXY_ADDRESSES``."""

from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
from redis.asyncio import Redis
from starlette.types import ASGIApp

from app.cli.serving import uvicorn_options
from app.main import create_app
from app.settings import Settings
from app.verification.follow import CallbackUrls
from app.verification.keys import derive_key
from app.verification.ports import CallId
from tests.integration.conftest import SECRET_KEY, sandbox_settings
from tests.waiting import lifespan_of

PROVIDER, STRANGER, PROXY = "185.54.48.1", "192.0.2.1", "10.1.2.3"
SECRET_PATH = CallbackUrls(derive_key(SECRET_KEY.encode(), "hooks"), prefix="/hooks/plusofon/").url_of(
    CallId("vrf_0a11b22c33d44e55f667788", 1)
)


def served(settings: Settings) -> ASGIApp:
    """Return the application wrapped in the middleware of uvicorn."""
    options = {**uvicorn_options(settings), "log_config": None, "ssl_certfile": None}
    config = uvicorn.Config(create_app(settings), **options)
    config.load()
    app: ASGIApp = config.loaded_app
    return app


async def post_hook(app: ASGIApp, *, peer: str, forwarded_for: str | None) -> int:
    """Post a provider callback of an unknown call; return the status, 404 if the address is not allowed."""
    headers = {"X-Forwarded-For": forwarded_for} if forwarded_for else {}
    transport = httpx.ASGITransport(app=app, client=(peer, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://verify") as client:
        answer = await client.post(SECRET_PATH, json={"key": "k", "phone": "+79001234567"}, headers=headers)
    return answer.status_code


@pytest.fixture
async def behind_proxy(redis: Redis, redis_url: str) -> AsyncIterator[ASGIApp]:
    settings = sandbox_settings(
        redis_url, plusofon={"hook_addresses": PROVIDER}, proxy_addresses="10.0.0.0/8, 172.16.0.1"
    )
    async with lifespan_of(served(settings)) as manager:
        yield manager.app


@pytest.fixture
async def by_itself(redis: Redis, redis_url: str) -> AsyncIterator[ASGIApp]:
    async with lifespan_of(served(sandbox_settings(redis_url, plusofon={"hook_addresses": PROVIDER}))) as manager:
        yield manager.app


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "status"),
    [
        (PROXY, PROVIDER, 204),
        ("172.16.0.1", PROVIDER, 204),
        (PROXY, STRANGER, 404),
        (PROXY, f"{PROVIDER}, {STRANGER}", 404),  # the caller wrote the first address itself, so it is not trusted
        (STRANGER, PROVIDER, 404),
        (PROVIDER, STRANGER, 204),
        (PROXY, None, 404),
        (f"::ffff:{PROXY}", PROVIDER, 204),  # the form of a dual-stack socket
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
async def test_forwarded_for_is_trusted_only_from_a_configured_proxy(
    behind_proxy: ASGIApp, peer: str, forwarded_for: str | None, status: int
) -> None:
    assert await post_hook(behind_proxy, peer=peer, forwarded_for=forwarded_for) == status


async def test_addresses_may_be_configured_in_ipv4_mapped_form(redis: Redis, redis_url: str) -> None:
    settings = sandbox_settings(
        redis_url,
        plusofon={"hook_addresses": f"::ffff:{PROVIDER}"},
        proxy_addresses="::ffff:10.0.0.0/104",
    )
    assert [str(network) for network in settings.proxy_addresses] == ["10.0.0.0/8"]
    async with lifespan_of(served(settings)) as manager:
        assert await post_hook(manager.app, peer=PROXY, forwarded_for=PROVIDER) == 204
        assert await post_hook(manager.app, peer=STRANGER, forwarded_for=PROVIDER) == 404


@pytest.mark.parametrize("peer", [PROXY, STRANGER, "127.0.0.1"])
async def test_without_configured_proxies_forwarded_for_is_ignored(by_itself: ASGIApp, peer: str) -> None:
    assert await post_hook(by_itself, peer=peer, forwarded_for=PROVIDER) == 404
    assert await post_hook(by_itself, peer=PROVIDER, forwarded_for=STRANGER) == 204
