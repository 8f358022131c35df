"""Builds what the application is made of: the only place that knows every part and the settings."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import stamina
from redis.asyncio import Redis

from app.api import events
from app.api.auth import ApiKeys
from app.api.stopping import stop_signals
from app.background import Background
from app.monitoring import facts_of, process_of, tell, watch
from app.plusofon.channels import PLUSOFON, FlashCallChannel, ReverseCallChannel, VoiceChannel
from app.plusofon.client import PlusofonClient
from app.plusofon.sandbox import SandboxServer, VirtualNetwork, create_sandbox_app
from app.relay.client import RelaySender
from app.resilience import Bulkhead, CircuitBreaker, ProtectedSender
from app.settings import Mode, Settings, SettingsError, make_endpoints, make_policies
from app.store.balance import RedisBalanceBoard
from app.store.call_queue import RedisCallQueue
from app.store.changes import RedisChanges
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.events import RedisOutbox
from app.store.forget import RedisOblivion
from app.store.guard import RedisFraudGuard
from app.store.idempotency import RedisIdempotency
from app.store.limits import RedisLimits
from app.store.redemptions import RedisRedemptions
from app.store.scripts import RoundTrip, ScriptRunner, Waited
from app.store.stats import RedisStats
from app.store.verifications import RedisVerificationStore
from app.telemetry.exposition import Exposition
from app.telemetry.metrics import Metrics
from app.tokens import TokenSigner
from app.verification.balance import Balance, BalancePoller
from app.verification.call_urls import CallUrls
from app.verification.channel import Channel
from app.verification.code import CodeDigester, derive_key
from app.verification.fixed_codes import FixedCodes
from app.verification.guard import FraudGuard
from app.verification.outbox import DeadLetters
from app.verification.policy import Allowance
from app.verification.ports import CallSender, ProviderAccounts
from app.verification.service import VerificationService
from app.verification.watcher import CallWatcher
from app.webhooks import WebhookDeliverer
from app.webhooks.sender import WebhookSender

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing

_FOR_LOOK_UPS = 10  # connections beside those of calls, so that these never keep look-ups waiting


@asynccontextmanager
async def open_guard(settings: Settings) -> AsyncIterator[FraudGuard]:
    """Reach the fraud guard without the service, for whoever runs it."""
    async with AsyncExitStack() as stack:
        yield _build_guard(settings, _build_runner(settings, _build_redis(settings, stack)))


@asynccontextmanager
async def open_dead_letters(settings: Settings) -> AsyncIterator[DeadLetters]:
    """Reach the events that could not be delivered without the service, for whoever runs it."""
    async with AsyncExitStack() as stack:
        yield RedisOutbox(_build_runner(settings, _build_redis(settings, stack)))


@asynccontextmanager
async def open_stats(settings: Settings) -> AsyncIterator[RedisStats]:
    """Reach the statistics without the service, for whoever runs it."""
    async with AsyncExitStack() as stack:
        runner = _build_runner(settings, _build_redis(settings, stack))
        yield RedisStats(runner, call_price_rub=settings.call.price_rub)


@asynccontextmanager
async def open_verifications(settings: Settings) -> AsyncIterator[RedisVerificationStore]:
    """Reach the verifications of all clients without the service, for whoever runs it."""
    async with AsyncExitStack() as stack:
        runner = _build_runner(settings, _build_redis(settings, stack))
        yield RedisVerificationStore(runner, phone_key=derive_key(settings.names_secret, "phone"))


@asynccontextmanager
async def open_oblivion(settings: Settings) -> AsyncIterator[RedisOblivion]:
    """Reach what erases all that is kept about a phone, for whoever runs the service."""
    async with AsyncExitStack() as stack:
        redis = _build_redis(settings, stack)
        phone_key = derive_key(settings.names_secret, "phone")
        yield RedisOblivion(redis, _build_runner(settings, redis), phone_key=phone_key)


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Redis]:
    """Reach Redis itself, for whoever runs the service."""
    async with AsyncExitStack() as stack:
        yield _build_redis(settings, stack)


@asynccontextmanager
async def open_accounts(settings: Settings) -> AsyncIterator[ProviderAccounts]:
    """Reach the provider's accounts without the service, for whoever runs it."""
    sandbox = make_network(settings) if settings.mode is Mode.SANDBOX else None
    async with AsyncExitStack() as stack:
        yield await _build_provider(settings, sandbox, stack)


@asynccontextmanager
async def open_service(settings: Settings, sandbox: VirtualNetwork | None) -> AsyncIterator[VerificationService]:
    """Run the service without its API, for whoever runs it; the calls and webhooks of others are left to others."""
    async with AsyncExitStack() as stack:
        service: VerificationService = (await build(settings, sandbox, stack, in_background=False))["service"]
        yield service


def make_network(settings: Settings) -> VirtualNetwork:
    """Make the telephone network of the sandbox."""
    return VirtualNetwork(pace=settings.sandbox.pace_seconds, balance=settings.sandbox.balance_rub)


def open_tracing(settings: Settings) -> "Tracing | None":
    """Make what traces, if somebody wants traces. Raises SettingsError."""
    if not settings.tracing.endpoint:
        return None
    try:
        from app.telemetry.tracing import Tracing  # noqa: PLC0415 - of an extra that few install

        return Tracing.to(settings.tracing.endpoint, version=version("plusofon-verify"))
    except ModuleNotFoundError:
        raise SettingsError(["TRACING_ENDPOINT needs the extra `tracing` of the package."]) from None


async def build(
    settings: Settings,
    sandbox: VirtualNetwork | None,
    stack: AsyncExitStack,
    tracing: "Tracing | None" = None,
    *,
    in_background: bool = True,
) -> dict[str, Any]:
    """Build what requests need; what is given back is their ``request.state``.

    Without ``in_background`` nothing is done but what is asked for: no calls are followed, no webhooks delivered.
    """
    stamina.instrumentation.set_on_retry_hooks(())  # who retries tells of it; the default would log and count it again
    # Not by the key of the codes: when that is rotated, no pending verification moves and no limit begins anew.
    name_key = derive_key(settings.names_secret, "phone")
    redis = _build_redis(settings, stack)
    metrics = Metrics()
    runner = _build_runner(settings, redis, metrics.round_trip, tracing.waited if tracing else None)
    stats = RedisStats(runner, call_price_rub=settings.call.price_rub)
    stack.push_async_callback(stats.aclose)
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
    circuits: dict[str, CircuitBreaker] = {}
    senders = {**_plusofon_channels(provider, hook_urls), **await _build_relays(settings, stack)}
    policies = make_policies(settings)
    service = VerificationService(
        store=RedisVerificationStore(runner, phone_key=name_key, told_clients=make_endpoints(settings.clients)),
        limits=RedisLimits(runner, key=name_key),
        guard=guard,
        senders=_protect(settings, watch(senders, metrics, tracing), circuits, poller.balance),
        accounts=provider,
        digester=CodeDigester(settings.secret_keys),
        policies=policies,
        fixed_codes=FixedCodes(dict(settings.test.numbers), lambda: datetime.now(UTC).date()),
        queue=queue,
        observe=tell(metrics.observe, stats.observe),
    )
    stack.push_async_callback(service.aclose)
    webhooks = _build_webhooks(settings, runner) if in_background else None
    if webhooks:
        stack.push_async_callback(_stop, asyncio.create_task(webhooks.run()))
    watcher = CallWatcher(queue, service.follow, within=1.5 * settings.longest_request)
    changes = RedisChanges(redis, listeners=settings.events.listeners)
    exposition = Exposition(
        metrics,
        version=version("plusofon-verify"),
        ping=runner.ping,
        facts=facts_of(
            stats=stats,
            guard=guard,
            balance=poller.balance,
            minimum_rub=settings.min_balance_rub,
            warning_rub=settings.warn_balance_rub,
            queue=queue,
            outbox=RedisOutbox(runner),
            budget=Allowance(policies.default.calls_per_day, "everybody"),
            limits_key=name_key,
        ),
        of_process=process_of(circuits, changes, lambda: background),
    )
    steps = {"calls": watcher.step, "balance": poller.step, "stats": stats.step, "metrics": exposition.step}
    background = await stack.enter_async_context(Background(steps if in_background else {}))
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
        "live": _build_live(changes, stack),
        "hook_urls": hook_urls,
        "hook_networks": settings.plusofon.hook_addresses,
        "api_keys": ApiKeys(settings.api.keys, open_as="sandbox" if sandbox else None),
        "admin_keys": ApiKeys(settings.admin.keys),
        "tokens": _build_tokens(settings),
        "redemptions": RedisRedemptions(runner),
    }


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


def _build_webhooks(settings: Settings, runner: ScriptRunner) -> WebhookDeliverer | None:
    """Make what delivers events, where some client wants any."""
    endpoints = make_endpoints(settings.clients)
    if not endpoints:
        return None
    sender = WebhookSender(allow_private=settings.mode is Mode.SANDBOX)
    return WebhookDeliverer(RedisOutbox(runner), endpoints, sender=sender)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _build_live(changes: RedisChanges, stack: AsyncExitStack) -> events.Live:
    stack.push_async_callback(changes.aclose)
    return events.Live(changes=changes, stopping=stack.enter_context(stop_signals()))


def _build_metrics_keys(settings: Settings) -> ApiKeys:
    if settings.metrics.open or settings.mode is Mode.SANDBOX:
        return ApiKeys((), open_as="everybody")
    return ApiKeys((*settings.metrics.keys, *settings.admin.keys))


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


def _build_redis(settings: Settings, stack: AsyncExitStack) -> Redis:
    """Connect to the Redis of the settings; without one (only in sandbox mode) to an embedded server."""
    url = settings.redis.url.get_secret_value() if settings.redis.url else stack.enter_context(EmbeddedServer()).url
    redis = connect(url, timeout=settings.redis.timeout_seconds)
    stack.push_async_callback(redis.aclose)
    return redis


def _build_runner(
    settings: Settings, redis: Redis, round_trip: RoundTrip | None = None, waited: Waited | None = None
) -> ScriptRunner:
    return ScriptRunner(redis, timeout=settings.redis.timeout_seconds, round_trip=round_trip, waited=waited)


async def _build_provider(settings: Settings, sandbox: VirtualNetwork | None, stack: AsyncExitStack) -> PlusofonClient:
    """Make the client of Plusofon; in sandbox mode, of a stand-in that is reached over HTTP all the same."""
    plusofon = settings.plusofon
    base_url, user_id, token = plusofon.base_url, plusofon.user_id, plusofon.access_token.get_secret_value()
    cabinet_token = plusofon.cabinet_token.get_secret_value() if plusofon.cabinet_token else None
    if sandbox:
        user_id, token, cabinet_token = "sandbox", "sandbox-access-token", None
        accepted = settings.sandbox.access_token.get_secret_value() if settings.sandbox.access_token else token
        stand_in = create_sandbox_app(sandbox, user_id=user_id, access_token=accepted)
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
            max_connections=plusofon.max_connections + _FOR_LOOK_UPS,
        )
    )
