"""Builds the application: the only place that knows every part and the settings."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.types import Lifespan

from app.api import admin, hooks, ops, provider, tokens, verify
from app.api.auth import ApiKeys
from app.api.docs import install_docs
from app.api.edge import Edge
from app.api.problems import install_problems
from app.background import Background
from app.plusofon.channels import PLUSOFON, FlashCallChannel, ReverseCallChannel, VoiceChannel
from app.plusofon.client import PlusofonClient
from app.plusofon.sandbox import SandboxServer, VirtualNetwork, create_sandbox_app, sandbox_router
from app.relay.client import RelaySender
from app.resilience import Bulkhead, CircuitBreaker, ProtectedSender
from app.settings import Mode, Settings, SettingsError, make_policies
from app.store.balance import RedisBalanceBoard
from app.store.call_queue import RedisCallQueue
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.guard import RedisFraudGuard
from app.store.idempotency import RedisIdempotency
from app.store.limits import RedisLimits
from app.store.redemptions import RedisRedemptions
from app.store.scripts import RoundTrip, ScriptRunner, Waited
from app.store.stats import RedisStats
from app.store.verifications import RedisVerificationStore
from app.telemetry.exposition import Exposition, Facts, OfProcess
from app.telemetry.metrics import Metrics
from app.tokens import TokenSigner
from app.verification.balance import Balance, BalancePoller
from app.verification.call_urls import CallUrls
from app.verification.channel import Channel
from app.verification.code import CodeDigester, derive_key
from app.verification.fixed_codes import FixedCodes
from app.verification.guard import FraudGuard
from app.verification.happenings import Happening
from app.verification.policy import Allowance
from app.verification.ports import CallSender
from app.verification.service import VerificationService
from app.verification.watcher import CallWatcher

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing

_ROUTERS = (verify.router, tokens.router, provider.router, hooks.router, admin.router, ops.router)
_DESCRIPTION = """
Proves that a person holds a Russian phone number: a call speaks a code, and the person types it.

`POST /verify/start` → the phone rings and a voice says the code → `POST /verify/check`.
"""


def create_app(
    settings: Settings, network: VirtualNetwork | None = None, *, tracing: "Tracing | None" = None
) -> FastAPI:
    """Make the application; all that holds a connection is built when it starts and closed when it stops.

    In sandbox mode ``network`` is the virtual telephone network, so that a test can look into it. ``tracing`` is what
    traces, where that is not for the settings to say.
    """
    sandbox = (network or VirtualNetwork()) if settings.mode is Mode.SANDBOX else None
    tracing = tracing or _open_tracing(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            if tracing:
                stack.push_async_callback(asyncio.to_thread, tracing.close)
            yield await _build(settings, sandbox, stack, tracing)

    app = create_api(lifespan)
    if tracing:
        app.add_middleware(tracing.middleware)
    if sandbox:
        app.include_router(sandbox_router(sandbox))
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


def _open_tracing(settings: Settings) -> "Tracing | None":
    """Make what traces, if somebody wants traces. Raises SettingsError."""
    if not settings.tracing.endpoint:
        return None
    try:
        from app.telemetry.tracing import Tracing  # noqa: PLC0415 - of an extra that few install

        return Tracing.to(settings.tracing.endpoint, version=version("plusofon-verify"))
    except ModuleNotFoundError:
        raise SettingsError(["TRACING_ENDPOINT needs the extra `tracing` of the package."]) from None


async def _build(
    settings: Settings, sandbox: VirtualNetwork | None, stack: AsyncExitStack, tracing: "Tracing | None"
) -> dict[str, Any]:
    """Build what requests need; what is given back is their ``request.state``."""
    # Not by the key of the codes: when that is rotated, no pending verification moves and no limit begins anew.
    name_key = derive_key(settings.names_secret, "phone")
    metrics = Metrics()
    runner = _build_runner(settings, stack, metrics.round_trip, tracing.waited if tracing else None)
    guard = _build_guard(settings, runner)
    provider = await _build_provider(settings, sandbox, stack)
    lease = 2 * settings.longest_request  # longer than a look-up, or reading the balance, can take
    queue = RedisCallQueue(runner, per_second=settings.watch.per_second, lease=lease)
    poller = BalancePoller(
        provider,
        RedisBalanceBoard(runner, lease=lease),
        minimum=settings.min_balance_rub,
        warning=settings.warn_balance_rub,
        clock=time.monotonic,
    )
    hook_urls = CallUrls(derive_key(settings.names_secret, "hooks"), prefix=f"{settings.reachable_url}/hooks/plusofon/")
    policies = make_policies(settings)
    stats = RedisStats(runner, call_price_rub=settings.call.price_rub)
    stack.push_async_callback(stats.aclose)

    def observe(happening: Happening) -> None:
        metrics.observe(happening)
        stats.observe(happening)

    circuits: dict[str, CircuitBreaker] = {}
    senders = {**_plusofon_channels(provider, hook_urls), **await _build_relays(settings, stack)}
    service = VerificationService(
        store=RedisVerificationStore(runner, phone_key=name_key),
        limits=RedisLimits(runner, key=name_key),
        guard=guard,
        senders=_protect(settings, _watch(senders, metrics, tracing), circuits, poller.balance),
        accounts=provider,
        digester=CodeDigester(settings.secret_keys),
        policies=policies,
        fixed_codes=FixedCodes(dict(settings.test.numbers), lambda: datetime.now(UTC).date()),
        queue=queue,
        observe=observe,
    )
    stack.push_async_callback(service.aclose)
    watcher = CallWatcher(queue, service.follow, within=1.5 * settings.longest_request)

    def lags() -> dict[str, float]:
        return {name: lag.total_seconds() for name, lag in background.lag.items()}

    exposition = Exposition(
        metrics,
        version=version("plusofon-verify"),
        ping=runner.ping,
        facts=_build_facts(
            settings,
            stats=stats,
            guard=guard,
            balance=poller.balance,
            queue=queue,
            used=lambda: stats.used(Allowance(policies.default.calls_per_day, "everybody"), key=name_key),
        ),
        of_process=OfProcess(
            circuits=lambda: {name: circuit.state for name, circuit in circuits.items()}, background=lags
        ),
    )
    steps = {"calls": watcher.step, "balance": poller.step, "stats": stats.step, "metrics": exposition.step}
    background = await stack.enter_async_context(Background(steps))
    return {
        "metrics": exposition,
        "metrics_keys": _build_metrics_keys(settings),
        "request_handled": metrics.request_handled,
        "service": service,
        "balance": poller.balance,
        "background": background,
        "circuits": circuits,
        "idempotency": _build_idempotency(settings, runner),
        "guard": guard,
        "hook_urls": hook_urls,
        "hook_networks": settings.plusofon.hook_addresses,
        "api_keys": ApiKeys(settings.api.keys, open_as="sandbox" if sandbox else None),
        "admin_keys": ApiKeys(settings.admin.keys),
        "tokens": _build_tokens(settings),
        "redemptions": RedisRedemptions(runner),
    }


def _build_facts(
    settings: Settings,
    *,
    stats: RedisStats,
    guard: FraudGuard,
    balance: Balance,
    queue: RedisCallQueue,
    used: Callable[[], Awaitable[int]],
) -> Facts:
    """Name what is known of the whole deployment, for the metrics."""

    async def calls_today() -> int:
        return (await stats.read()).calls

    async def spend_today() -> Decimal:
        return (await stats.read()).spend_rub

    async def blocks() -> int:
        return len(await guard.blocks())

    async def watcher_lag() -> float:
        return (await queue.lag()).total_seconds()

    return Facts(
        balance_rub=lambda: balance.rub,
        balance_minimum_rub=lambda: settings.min_balance_rub,
        balance_warning_rub=lambda: settings.warn_balance_rub,
        spend_today_rub=spend_today,
        calls_today=calls_today,
        call_budget=lambda: settings.limit.calls_per_day,
        call_budget_used=used,
        fraud_blocks=blocks,
        watcher_lag_seconds=watcher_lag,
    )


def _build_metrics_keys(settings: Settings) -> ApiKeys:
    if settings.metrics.open or settings.mode is Mode.SANDBOX:
        return ApiKeys((), open_as="everybody")
    return ApiKeys((*settings.metrics.keys, *settings.admin.keys))


def _plusofon_channels(client: PlusofonClient, hook_urls: CallUrls) -> dict[Channel, CallSender]:
    return {
        Channel.VOICE: VoiceChannel(client),
        Channel.FLASH_CALL: FlashCallChannel(client),
        Channel.REVERSE_CALL: ReverseCallChannel(client, hook_urls.url_of),
    }


async def _build_relays(settings: Settings, stack: AsyncExitStack) -> dict[Channel, CallSender]:
    """Make a sender for each channel that goes to the operator's own URL in place of Plusofon."""
    relay = settings.relay
    if relay.url is None or relay.secret is None:  # the settings require both where channels are named
        return {}
    return {
        channel: await stack.enter_async_context(
            RelaySender(
                channel,
                url=relay.url.get_secret_value(),
                secret=relay.secret.get_secret_value(),
                connect_timeout=relay.connect_timeout_seconds,
                timeout=relay.timeout_seconds,
            )
        )
        for channel in relay.channels
    }


def _watch(
    senders: Mapping[Channel, CallSender], metrics: Metrics, tracing: "Tracing | None"
) -> dict[Channel, CallSender]:
    """Time each request to a provider, and trace it where traces are wanted."""
    timed = {channel: metrics.timed(channel, sender) for channel, sender in senders.items()}
    return {channel: tracing.traced(channel, sender) for channel, sender in timed.items()} if tracing else timed


def _protect(
    settings: Settings, senders: Mapping[Channel, CallSender], circuits: dict[str, CircuitBreaker], balance: Balance
) -> dict[Channel, CallSender]:
    """Put a circuit breaker and a bulkhead in front of each provider; the balance pays for Plusofon's calls alone."""
    bulkheads: dict[str, Bulkhead] = {}
    protected: dict[Channel, CallSender] = {}
    for channel, sender in senders.items():
        name = sender.provider
        circuit = circuits.setdefault(
            name,
            CircuitBreaker(
                name, failures=settings.plusofon.circuit_failures, open_for=settings.plusofon.circuit_seconds
            ),
        )
        bulkhead = bulkheads.setdefault(name, Bulkhead(settings.plusofon.max_connections))
        admit = balance.require_enough if name == PLUSOFON else _admit_all
        protected[channel] = ProtectedSender(sender, circuit=circuit, bulkhead=bulkhead, admit=admit)
    return protected


def _admit_all() -> None:
    """Admit a call that costs nothing here."""


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


def _build_runner(
    settings: Settings, stack: AsyncExitStack, round_trip: RoundTrip | None = None, waited: Waited | None = None
) -> ScriptRunner:
    """Connect to the Redis of the settings; without one (only in sandbox mode) to an embedded server."""
    url = settings.redis.url.get_secret_value() if settings.redis.url else stack.enter_context(EmbeddedServer()).url
    redis = connect(url, timeout=settings.redis.timeout_seconds)
    stack.push_async_callback(redis.aclose)
    return ScriptRunner(redis, timeout=settings.redis.timeout_seconds, round_trip=round_trip, waited=waited)


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
