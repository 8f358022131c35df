"""The application: its routes, and the objects that are opened when it starts (``app/container.py``)."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import Lifespan

from app.api import (
    attempts,
    audit,
    erasure,
    event_stream,
    failed_webhooks,
    fraud_guard,
    ops,
    provider_account,
    provider_callbacks,
    stats,
    tokens,
    verification,
)
from app.api.docs import install_docs
from app.api.problems import install_problems
from app.api.routing import Application
from app.container import Container, make_network, open_container
from app.pages.console import console_router
from app.sandbox.demo import demo_router
from app.sandbox.network import VirtualNetwork
from app.sandbox.routes import sandbox_router
from app.sandbox.webhook_log import WebhookLog, webhook_log_router
from app.server.shutdown import stop_signals
from app.settings import Mode, Settings, SettingsError

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing

_FEATURES = (
    verification,
    event_stream,
    tokens,
    provider_account,
    provider_callbacks,
    fraud_guard,
    failed_webhooks,
    attempts,
    audit,
    erasure,
    stats,
    ops,
)
_DESCRIPTION = """
Proves that a person holds a Russian phone number: a call speaks a code, and the person types it.

`POST /verify/start` → the phone rings and a voice says the code → `POST /verify/check`.

Keep the `verification_id` of the answer: check by it, and send it to `start` to call again for the same verification.

## Keys

Send `Authorization: Bearer <key>`. The key of a client (`API_KEYS`) sees the verifications of this client alone;
operators have keys of their own (`ADMIN_KEYS`). `plusofon-verify keygen api-key NAME` and `keygen admin-key NAME` make
them. On this page, **Authorize** takes them; a sandbox without `API_KEYS` needs none.

## Errors

Every error is a problem (RFC 9457): `type` identifies it and never changes, `detail` is a sentence for your log,
`instance` is the id of the request, also in `X-Request-ID`. `GET /problems/{slug}` explains each type.

| Status | What to do |
|---|---|
| 400, 401, 413, 422 | The request is wrong: correct it, or it fails again. |
| 404, 409, 410 | The verification or its token is over, or not yours: start anew. With `retry_after`: repeat it then. |
| 429 | Wait for `Retry-After` seconds. |
| 502, 503 | A start has placed no call. Try again later. |

A wrong code is no error: `check` answers 200 with `verified: false`.

## Idempotency

Send an `Idempotency-Key` with `start` and `check`, a new one (such as a UUID) for each action of a person. If the
response was lost, send the same request with the same key again: it gets the same response, with
`Idempotent-Replayed: true`, and neither places a second call nor uses a second check.
"""


def create_app(
    settings: Settings,
    network: VirtualNetwork | None = None,
    *,
    webhook_log: WebhookLog | None = None,
    tracing: "Tracing | None" = None,
) -> FastAPI:
    """Return the application; its objects are built when it starts and closed when it stops.

    The sandbox records webhooks in ``webhook_log``. Tests pass its telephone ``network``, and their own ``tracing`` in
    place of that of the settings.
    Raises SettingsError: traces are wanted and cannot be sent.
    """
    tracing = tracing or open_tracing(settings)
    sandbox = (network or make_network(settings)) if settings.mode is Mode.SANDBOX else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Container]]:
        async with AsyncExitStack() as stack:
            if tracing:
                stack.push_async_callback(asyncio.to_thread, tracing.close)
            container = await stack.enter_async_context(
                open_container(settings, sandbox, webhook_log=webhook_log, tracing=tracing, in_background=True)
            )
            stack.enter_context(stop_signals(container.stopping))
            yield {"container": container}

    pages = {"console": "Console"} | ({"demo": "Demo"} if sandbox else {})
    app = create_api(lifespan, path_prefix=settings.path_prefix, pages=pages)
    app.include_router(console_router(has_webhook_log=webhook_log is not None))
    if tracing:
        app.add_middleware(tracing.middleware)
    if sandbox:
        app.include_router(sandbox_router(sandbox))
        if webhook_log:
            app.include_router(webhook_log_router(webhook_log))
        app.include_router(demo_router(channels=settings.enabled_channels))
    return app


def create_api(
    lifespan: Lifespan[FastAPI] | None = None, *, path_prefix: str = "", pages: Mapping[str, str] = MappingProxyType({})
) -> FastAPI:
    """Return an application with the routes of production; without a ``lifespan``, just enough to describe the API.

    ``path_prefix`` is what a proxy strips from the paths of the requests. ``pages`` are the titles, by path, of other
    pages to which the docs link.
    """
    app = Application(
        title="Plusofon Verify",
        summary="Phone verification by voice call, for Russian numbers.",
        description=_DESCRIPTION,
        version=version("plusofon-verify"),
        license_info={"name": "MIT", "identifier": "MIT"},
        servers=[{"url": path_prefix or "/"}],
        lifespan=lifespan,
        docs_url=None,
        openapi_url=None,  # install_docs serves it
        redoc_url=None,
        redirect_slashes=False,
        # The error of a failed validation may contain a code.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # Not by include_router, whose routes are matched twice on every request.
        routes=[route for feature in _FEATURES for route in feature.router.routes],
    )
    app.path_prefix = path_prefix
    install_problems(app)
    install_docs(app, pages)
    return app


def open_tracing(settings: Settings) -> "Tracing | None":
    """Return the tracing of TRACING_ENDPOINT, or None without it. Raises SettingsError."""
    if not settings.tracing_endpoint:
        return None
    try:
        from app.telemetry.tracing import Tracing  # noqa: PLC0415 - of an optional extra

        return Tracing.to(settings.tracing_endpoint, version=version("plusofon-verify"))
    except ModuleNotFoundError:
        raise SettingsError(["TRACING_ENDPOINT needs the extra `tracing` of the package."]) from None
    except ValueError:  # its text may repeat a value
        names = ", ".join(sorted(name for name in os.environ if name.startswith("OTEL_")))
        raise SettingsError([f"TRACING_ENDPOINT cannot be used: OpenTelemetry refuses one of {names}."]) from None
