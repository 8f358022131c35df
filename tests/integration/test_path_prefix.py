"""The service behind a proxy that strips the path prefix of ``PUBLIC_URL``."""

import re
from collections.abc import AsyncIterator
from urllib.parse import urljoin

import httpx
import pytest
from redis.asyncio import Redis
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.server import SandboxServer
from app.verification.channels import Channel
from tests.integration.conftest import PACE, sandbox_settings
from tests.integration.test_channels_routes import BEELINE, LateApp, Sandbox
from tests.waiting import lifespan_of

PREFIXES = ["/verify-service", "/verify", "/a/b.c~d"]  # the second is how the API's own paths begin


class StrippingProxy:
    """Strips the prefix and passes the request on; any other path belongs to another site."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(self.prefix + "/"):
            await PlainTextResponse("another site", 418)(scope, receive, send)
            return
        path = scope["path"].removeprefix(self.prefix)
        await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, send)


@pytest.fixture(params=PREFIXES)
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def sandbox(redis: Redis, redis_url: str, prefix: str) -> AsyncIterator[Sandbox]:
    """Run the service behind the proxy on a real port, because the provider's callbacks go there."""
    network, late_app = VirtualNetwork(pace=PACE), LateApp()
    async with SandboxServer(late_app) as server:
        settings = sandbox_settings(
            redis_url,
            public_url=f"{server.url}{prefix}/",
            channels=list(Channel),
            plusofon={"hook_delay_seconds": 0},
        )
        async with lifespan_of(create_app(settings, network)) as manager:
            late_app.app = StrippingProxy(manager.app, prefix)
            async with httpx.AsyncClient(base_url=f"{server.url}{prefix}", timeout=5) as api:
                yield Sandbox(api, network)


@pytest.mark.parametrize("page", ["/demo", "/docs"])
async def test_every_link_of_a_page_works(sandbox: Sandbox, page: str) -> None:
    answer = await sandbox.api.get(page)
    assert answer.status_code == 200
    links = re.findall(r'(?:src|href)="([^"#]+)"', answer.text)
    assert len(links) >= 5
    for link in links:
        found = await sandbox.api.get(urljoin(str(answer.url), link))
        assert found.status_code == 200, link


async def test_the_scripts_of_the_pages_use_relative_urls_only(sandbox: Sandbox) -> None:
    """All requests are relative to the page; ``send`` and the event stream put the dot before the path."""
    scripts = ["/docs/page.js", *(f"/demo/js/{name}.js" for name in ("main", "api", "watch"))]
    for script in scripts:
        text = (await sandbox.api.get(script)).text
        asked = re.findall(r"(?:\bfetch\(|\bEventSource\(|\burl: )([`\"][^`\"]*|\w+)", text)
        assert asked, script
        assert not [what for what in asked if what[1:2] == "/" or what in {"path", "url"}], script
    assert "location.origin" not in (await sandbox.api.get("/demo/js/curl.js")).text
    assert (await sandbox.api.get("/demo/config.json")).json()["events"] is True


async def test_openapi_has_the_prefix_as_its_server_url(sandbox: Sandbox, prefix: str) -> None:
    assert (await sandbox.api.get("/openapi.json")).json()["servers"] == [{"url": prefix}]


async def test_a_location_header_leads_to_the_new_verification(sandbox: Sandbox, prefix: str) -> None:
    started = await sandbox.api.post("/verify/start", json={"phone": BEELINE}, headers={"Idempotency-Key": "one"})
    again = await sandbox.api.post("/verify/start", json={"phone": BEELINE}, headers={"Idempotency-Key": "one"})

    assert (
        again.headers["Location"] == started.headers["Location"] == f"{prefix}/verify/{again.json()['verification_id']}"
    )
    found = await sandbox.api.get(urljoin(str(started.url), started.headers["Location"]))
    assert found.json()["verification_id"] == started.json()["verification_id"]


async def test_the_root_redirects_to_the_demo_page(sandbox: Sandbox, prefix: str) -> None:
    answer = await sandbox.api.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (307, f"{prefix}/demo")


async def test_the_provider_callback_of_a_reverse_call_arrives(sandbox: Sandbox) -> None:
    started = await sandbox.start(BEELINE, channel="reverse_call")
    await sandbox.dial(BEELINE, started["dial"])
    assert (await sandbox.verified(started))["verified"] is True


async def test_problem_types_have_no_prefix(sandbox: Sandbox) -> None:
    answer = await sandbox.api.get("/verify/vrf_00")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/verification-not-found")
    assert (await sandbox.api.get("/no/such/page")).status_code == 404


async def test_a_public_url_without_a_path_adds_no_prefix(redis: Redis, redis_url: str) -> None:
    app = create_app(sandbox_settings(redis_url, public_url="http://verify"), VirtualNetwork(pace=PACE))
    async with (
        lifespan_of(app) as manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app=manager.app), base_url="http://verify") as api,
    ):
        started = await api.post("/verify/start", json={"phone": BEELINE})
        assert started.headers["Location"] == f"/verify/{started.json()['verification_id']}"
        assert (await api.get("/openapi.json")).json()["servers"] == [{"url": "/"}]
