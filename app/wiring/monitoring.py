"""Which part of the service answers which question of the metrics, and who is told what happens."""

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from app.background import Background
from app.providers.circuit import CircuitBreaker
from app.store.call_following import RedisCallQueue
from app.store.event_stream import RedisChanges
from app.store.stats import RedisStats
from app.store.webhooks import RedisOutbox
from app.telemetry.exposition import Facts, OfProcess
from app.telemetry.metrics import Metrics
from app.verification.balance import Balance
from app.verification.channels import Channel
from app.verification.domain_events import DomainEvent, Publish
from app.verification.errors import StoreUnavailable
from app.verification.fraud_guard import FraudGuard
from app.verification.policy import Allowance
from app.verification.ports import CallSender

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing


def tell(*observers: Publish) -> Publish:
    """Tell each of them what happens."""

    def observe(event: DomainEvent) -> None:
        for observer in observers:
            observer(event)

    return observe


def watch(
    senders: Mapping[Channel, CallSender], metrics: Metrics, tracing: "Tracing | None"
) -> dict[Channel, CallSender]:
    """Time each request to a provider, and trace it where traces are wanted."""
    timed = {channel: metrics.timed(channel, sender) for channel, sender in senders.items()}
    return {channel: tracing.traced(channel, sender) for channel, sender in timed.items()} if tracing else timed


def facts_of(
    *,
    ping: Callable[[], Awaitable[None]],
    stats: RedisStats,
    guard: FraudGuard,
    balance: Balance,
    minimum_rub: Decimal,
    warning_rub: Decimal,
    queue: RedisCallQueue,
    outbox: RedisOutbox,
    budget: Allowance,
    limits_key: bytes,
) -> tuple[Facts, ...]:
    """Return what is the same whichever worker is asked."""

    async def store() -> Mapping[str, float]:
        try:
            await ping()
        except StoreUnavailable:
            return {"store_up": 0}
        return {"store_up": 1}

    async def known() -> Mapping[str, float | Decimal | None]:
        return {
            "balance_rub": balance.rub,
            "balance_minimum_rub": minimum_rub,
            "balance_warning_rub": warning_rub,
            "call_budget": budget.limit.count,
        }

    async def used() -> Mapping[str, float]:
        return {"call_budget_used": await stats.used(budget, key=limits_key)}

    async def today() -> Mapping[str, float | Decimal]:
        told = await stats.read()
        return {"calls_today": told.calls, "spend_today_rub": told.spend_rub}

    async def fraud() -> Mapping[str, float]:
        return {"fraud_blocks": len(await guard.blocks())}

    async def watcher() -> Mapping[str, float]:
        return {"watcher_lag_seconds": (await queue.lag()).total_seconds()}

    async def webhooks() -> Mapping[str, float]:
        backlog = await outbox.backlog()
        return {
            "webhook_lag_seconds": backlog.lag.total_seconds(),
            "webhooks_pending": backlog.queued + backlog.retries,
            "webhooks_dead": backlog.dead,
        }

    return store, known, used, today, fraud, watcher, webhooks


def process_of(
    circuits: Mapping[str, CircuitBreaker], changes: RedisChanges, background: Callable[[], Background]
) -> OfProcess:
    """Name what this process knows of itself. ``background`` is asked for late: it tells of these metrics, too."""

    def lags() -> dict[str, float]:
        return {name: lag.total_seconds() for name, lag in background().lag.items()}

    return OfProcess(
        circuits=lambda: {name: circuit.state for name, circuit in circuits.items()},
        listeners=lambda: changes.listeners,
        background=lags,
    )
