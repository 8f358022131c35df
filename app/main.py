"""Builds the application: the only place that knows every part and the settings."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.types import Lifespan

from app.api import admin, ops, provider, tokens, verify
from app.api.auth import ApiKeys
from app.api.docs import install_docs
from app.api.edge import Edge
from app.api.problems import install_problems
from app.demo import demo_router
from app.plusofon.channels import VoiceChannel
from app.plusofon.client import PlusofonClient
from app.plusofon.sandbox import SandboxServer, VirtualNetwork, create_sandbox_app, sandbox_router
from app.settings import Mode, Settings, make_policies
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.guard import RedisFraudGuard
from app.store.idempotency import RedisIdempotency
from app.store.limits import RedisLimits
from app.store.redemptions import RedisRedemptions
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.tokens import TokenSigner
from app.verification.code import CodeDigester, derive_key
from app.verification.fixed_codes import FixedCodes
from app.verification.guard import FraudGuard
from app.verification.model import Channel
from app.verification.service import VerificationService

_ROUTERS = (verify.router, tokens.router, provider.router, admin.router, ops.router)
_DESCRIPTION = """
Proves that a person holds a Russian phone number: a call speaks a code, and the person types it.

`POST /verify/start` → the phone rings and a voice says the code → `POST /verify/check`.
"""


def create_app(settings: Settings, network: VirtualNetwork | None = None) -> FastAPI:
    """Make the application; all that holds a connection is built when it starts and closed when it stops.

    In sandbox mode ``network`` is the virtual telephone network, so that a test can look into it.
    """
    sandbox = (network or VirtualNetwork()) if settings.mode is Mode.SANDBOX else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            yield await _build(settings, sandbox, stack)

    app = create_api(lifespan)
    if sandbox:
        app.include_router(sandbox_router(sandbox))
        allowed = make_policies(settings).default.channels
        app.include_router(demo_router(channels=[channel for channel in Channel if channel in allowed]))
    return app


@asynccontextmanager
async def open_guard(settings: Settings) -> AsyncIterator[FraudGuard]:
    """Reach the fraud guard without the service, for whoever runs it."""
    async with AsyncExitStack() as stack:
        yield _build_guard(settings, _build_runner(settings, stack))


def create_api(lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """Make the routes alone, as production has them: enough to describe the API, too little to serve it."""
    app = FastAPI(
        title="Plusofon Verify",
        summary="Phone verification by voice call, for Russian numbers.",
        description=_DESCRIPTION,
        version=version("plusofon-verify"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # What a failed validation says may be a code, and nothing of FastAPI's own is exported anywhere.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # As they are: the routes of a router that is included are matched twice, on every request.
        routes=[route for router in _ROUTERS for route in router.routes],
    )
    app.add_middleware(Edge)
    install_problems(app)
    install_docs(app)
    return app


async def _build(settings: Settings, sandbox: VirtualNetwork | None, stack: AsyncExitStack) -> dict[str, Any]:
    """Build what requests need; what is given back is their ``request.state``."""
    # Not by the key of the codes: when that is rotated, no pending verification moves and no limit begins anew.
    name_key = derive_key(settings.names_secret, "phone")
    runner = _build_runner(settings, stack)
    guard = _build_guard(settings, runner)
    provider = await _build_provider(settings, sandbox, stack)
    service = VerificationService(
        store=RedisVerificationStore(runner, phone_key=name_key),
        limits=RedisLimits(runner, key=name_key),
        guard=guard,
        senders={Channel.VOICE: VoiceChannel(provider)},
        accounts=provider,
        digester=CodeDigester(settings.secret_keys),
        policies=make_policies(settings),
        fixed_codes=FixedCodes(dict(settings.test.numbers), lambda: datetime.now(UTC).date()),
    )
    stack.push_async_callback(service.aclose)
    return {
        "service": service,
        "idempotency": _build_idempotency(settings, runner),
        "guard": guard,
        "api_keys": ApiKeys(settings.api.keys, open_as="sandbox" if sandbox else None),
        "admin_keys": ApiKeys(settings.admin.keys),
        "tokens": _build_tokens(settings),
        "redemptions": RedisRedemptions(runner),
    }


def _build_tokens(settings: Settings) -> TokenSigner:
    return TokenSigner(
        settings.token_keys,
        issuer=settings.token.issuer,
        lifetime=timedelta(seconds=settings.token.lifetime_seconds),
    )


def _build_idempotency(settings: Settings, runner: ScriptRunner) -> RedisIdempotency:
    """Keep answers through the runner of the verifications, so that both share writes."""
    return RedisIdempotency(
        runner,
        key=derive_key(settings.names_secret, "idempotency"),
        claim_for=2 * settings.longest_request,
    )


def _build_guard(settings: Settings, runner: ScriptRunner) -> RedisFraudGuard:
    return RedisFraudGuard(runner, settings.guard.rules(settings.phone.allowed_prefixes))


def _build_runner(settings: Settings, stack: AsyncExitStack) -> ScriptRunner:
    """Connect to the Redis of the settings; without one (only in sandbox mode) to an embedded server."""
    url = settings.redis.url.get_secret_value() if settings.redis.url else stack.enter_context(EmbeddedServer()).url
    redis = connect(url, timeout=settings.redis.timeout_seconds)
    stack.push_async_callback(redis.aclose)
    return ScriptRunner(redis, timeout=settings.redis.timeout_seconds)


async def _build_provider(settings: Settings, sandbox: VirtualNetwork | None, stack: AsyncExitStack) -> PlusofonClient:
    """Make the client of Plusofon; in sandbox mode, of a stand-in that is reached over HTTP all the same."""
    plusofon = settings.plusofon
    base_url, user_id, token = plusofon.base_url, plusofon.user_id, plusofon.access_token.get_secret_value()
    cabinet_token = plusofon.cabinet_token.get_secret_value() if plusofon.cabinet_token else None
    if sandbox:
        user_id, token, cabinet_token = "sandbox", "sandbox-access-token", None
        stand_in = create_sandbox_app(sandbox, user_id=user_id, access_token=token)
        base_url = (await stack.enter_async_context(SandboxServer(stand_in))).url
    return await stack.enter_async_context(
        PlusofonClient(
            base_url=base_url,
            user_id=user_id,
            access_token=token,
            cabinet_token=cabinet_token,
            phone_prefix=plusofon.phone_prefix,
            connect_timeout=plusofon.connect_timeout_seconds,
            timeout=plusofon.timeout_seconds,
            max_connections=plusofon.max_connections,
        )
    )
