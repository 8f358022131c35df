"""The application: its routes, and what is opened when it starts. What it is built of: ``app/wiring``."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import Lifespan

from app.api import event_stream, fraud_guard, ops, provider_account, provider_callbacks, tokens, verification
from app.api.docs import install_docs
from app.api.middleware import RequestMiddleware
from app.api.path_prefix import PathPrefix
from app.api.problems import install_problems
from app.api.state import State
from app.sandbox import VirtualNetwork, sandbox_router
from app.sandbox.demo import demo_router
from app.settings import Mode, Settings
from app.wiring import build, make_network, open_tracing

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing

_ROUTERS = (
    verification.router,
    event_stream.router,
    tokens.router,
    provider_account.router,
    provider_callbacks.router,
    fraud_guard.router,
    ops.router,
)
_DESCRIPTION = """
Proves that a person holds a Russian phone number: a call speaks a code, and the person types it.

`POST /verify/start` → the phone rings and a voice says the code → `POST /verify/check`.

Keep the `verification_id` of the answer: check by it, and send it to `start` to call again for the same verification.
"""


def create_app(
    settings: Settings, network: VirtualNetwork | None = None, *, tracing: "Tracing | None" = None
) -> FastAPI:
    """Make the application; all that holds a connection is built when it starts and closed when it stops.

    In sandbox mode ``network`` is the virtual telephone network, so that a test can look into it. ``tracing`` is what
    traces, where that is not for the settings to say.
    """
    tracing = tracing or open_tracing(settings)
    sandbox = (network or make_network(settings)) if settings.mode is Mode.SANDBOX else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            if tracing:
                stack.push_async_callback(asyncio.to_thread, tracing.close)
            yield await build(settings, sandbox, stack, tracing)

    app = create_api(lifespan, server=settings.path_prefix or "/")
    if tracing:
        app.add_middleware(tracing.middleware)
    if settings.path_prefix:
        app.add_middleware(PathPrefix, prefix=settings.path_prefix)
    if sandbox:
        app.include_router(sandbox_router(sandbox))
        app.include_router(demo_router(channels=settings.enabled_channels))
    return app


def create_api(lifespan: Lifespan[FastAPI] | None = None, *, server: str = "/") -> FastAPI:
    """Make the routes alone, as production has them: enough to describe the API, too little to serve it.

    ``server`` is the URL that the description names, relative to the description's own.
    """
    app = FastAPI(
        title="Plusofon Verify",
        summary="Phone verification by voice call, for Russian numbers.",
        description=_DESCRIPTION,
        version=version("plusofon-verify"),
        license_info={"name": "MIT", "identifier": "MIT"},
        servers=[{"url": server}],
        lifespan=lifespan,
        docs_url=None,
        openapi_url=None,  # install_docs serves it
        redoc_url=None,
        redirect_slashes=False,
        # What a failed validation says may be a code, and nothing of FastAPI's own is exported anywhere.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # As they are: the routes of a router that is included are matched twice, on every request.
        routes=[route for router in _ROUTERS for route in router.routes],
    )
    app.add_middleware(RequestMiddleware)
    install_problems(app)
    install_docs(app)
    return app
