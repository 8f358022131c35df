"""Puts the service together: what requests need, and what runs beside them."""

import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from app.api import event_stream
from app.api.auth import ApiKeys
from app.api.state import State
from app.api.stopping import stop_signals
from app.background import Background
from app.sandbox import VirtualNetwork
from app.settings import Settings, make_endpoints, make_policies
from app.store.call_following import RedisCallQueue
from app.store.event_stream import RedisChanges
from app.store.limits import RedisRateLimiter
from app.store.stats import RedisStats
from app.store.tokens import RedisRedemptions
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import RedisOutbox
from app.telemetry.exposition import Exposition
from app.telemetry.metrics import Metrics
from app.verification.call_following import CallWatcher
from app.verification.code import CodeDigester
from app.verification.deferred import DeferredWrites
from app.verification.policy import Allowance
from app.verification.provider_account import AccountReader
from app.verification.service import VerificationService
from app.verification.test_numbers import TestNumbers
from app.wiring import parts
from app.wiring.monitoring import facts_of, process_of, tell, watch
from app.wiring.providers import make_providers

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing


async def build(
    settings: Settings,
    sandbox: VirtualNetwork | None,
    stack: AsyncExitStack,
    tracing: "Tracing | None" = None,
    *,
    in_background: bool = True,
) -> State:
    """Build what requests need.

    Without ``in_background`` nothing is done but what is asked for: no calls are followed, no webhooks delivered.
    """
    names_key, policies = parts.make_names_key(settings), make_policies(settings)
    metrics = Metrics()
    redis = parts.connect_redis(settings, stack)
    runner = parts.make_runner(settings, redis, metrics.round_trip, tracing.waited if tracing else None)
    stats = RedisStats(runner, call_price_rub=settings.call.price_rub)
    stack.push_async_callback(stats.aclose)
    guard = parts.make_guard(settings, runner)
    providers = await make_providers(settings, runner, sandbox, stack, tracing)
    deferred = DeferredWrites()
    tokens = parts.make_tokens(settings)
    # Longer than a look-up can take.
    queue = RedisCallQueue(runner, per_second=settings.watch.per_second, lease=2 * settings.longest_request)
    service = VerificationService(
        store=RedisVerificationStore(runner, phone_key=names_key, webhook_clients=make_endpoints(settings.clients)),
        limits=RedisRateLimiter(runner, key=names_key),
        guard=guard,
        senders=providers.protect(settings, watch(providers.senders, metrics, tracing)),
        digester=CodeDigester(settings.secret_keys),
        policies=policies,
        tokens=tokens,
        test_numbers=TestNumbers(dict(settings.test.numbers), lambda: datetime.now(UTC).date()),
        schedule=queue,
        publish=tell(metrics.observe, stats.observe),
        deferred=deferred,
        store_timeout=settings.redis.timeout_seconds,
    )
    stack.push_async_callback(deferred.aclose)
    changes = RedisChanges(
        redis,
        listeners=settings.events.listeners,
        listeners_of_client=_share(settings.events.listeners, among=len({client for client, _ in settings.api.keys})),
    )
    stack.push_async_callback(changes.aclose)
    balance = providers.poller.balance
    exposition = Exposition(
        metrics,
        version=version("plusofon-verify"),
        facts=facts_of(
            ping=runner.ping,
            stats=stats,
            guard=guard,
            balance=balance,
            minimum_rub=settings.min_balance_rub,
            warning_rub=settings.warn_balance_rub,
            queue=queue,
            outbox=RedisOutbox(runner),
            budget=Allowance(policies.default.calls_per_day, "everybody"),
            limits_key=names_key,
        ),
        of_process=process_of(providers.circuits, changes, lambda: background),
    )
    webhooks = parts.make_webhooks(settings, runner)
    if webhooks and in_background:
        stack.push_async_callback(_stop, asyncio.create_task(webhooks.run()))
    watcher = CallWatcher(queue, service.calls.follow, timeout=1.5 * settings.longest_request)
    steps = {"calls": watcher.step, "balance": providers.poller.step, "stats": stats.step, "metrics": exposition.step}
    background = await stack.enter_async_context(Background(steps if in_background else {}))
    return State(
        service=service,
        idempotency=parts.make_idempotency(settings, runner, deferred),
        tokens=tokens,
        accounts=AccountReader(providers.plusofon),
        redemptions=RedisRedemptions(runner),
        guard=guard,
        live=event_stream.Live(changes=changes, stopping=stack.enter_context(stop_signals())),
        callback_urls=providers.callback_urls,
        callback_networks=settings.plusofon.hook_addresses,
        balance=balance,
        circuits=providers.circuits,
        metrics=exposition,
        request_handled=metrics.request_handled,
        api_keys=parts.make_api_keys(settings),
        admin_keys=ApiKeys(settings.admin.keys, kind="admin key"),
        metrics_keys=parts.make_metrics_keys(settings),
        account_keys=parts.make_account_keys(settings),
    )


def _share(places: int, *, among: int) -> int:
    """How many one client may take: half of them, so that none is left without by another; all of them if alone."""
    return places if among < 2 else max(1, places // 2)  # noqa: PLR2004 - two are not alone


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
