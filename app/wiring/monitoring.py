"""Which part of the service answers which question of the metrics, and who is told what happens."""

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal

from app.background import Background
from app.providers.circuit import CircuitBreaker
from app.store.call_following import RedisCallQueue
from app.store.event_stream import RedisChanges
from app.store.stats import RedisStats
from app.store.webhooks import RedisOutbox
from app.telemetry.exposition import ProcessGauges, ReadGauges
from app.verification.domain_events import DomainEvent, Publish
from app.verification.errors import StoreUnavailable
from app.verification.fraud_guard import FraudGuard
from app.verification.policy import Allowance
from app.verification.provider_account import Balance


def tell(*observers: Publish) -> Publish:
    """Tell each of them what happens."""

    def observe(event: DomainEvent) -> None:
        for observer in observers:
            observer(event)

    return observe


def facts_of(
    *,
    ping: Callable[[], Awaitable[None]],
    stats: RedisStats,
    guard: FraudGuard,
    balance: Balance,
    queue: RedisCallQueue,
    outbox: RedisOutbox,
    budget: Allowance,
    limits_key: bytes,
) -> tuple[ReadGauges, ...]:
    """Return what is the same whichever worker is asked."""

    async def store() -> Mapping[str, float]:
        try:
            await ping()
        except StoreUnavailable:
            return {"store_up": 0}
        return {"store_up": 1}

    async def known() -> Mapping[str, float | Decimal | None]:
        return {
            **await balance.gauges(),
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
) -> ProcessGauges:
    """Name what this process knows of itself. ``background`` is asked for late: it tells of these metrics, too."""

    def lags() -> dict[str, float]:
        return {name: lag.total_seconds() for name, lag in background().lag.items()}

    return ProcessGauges(
        circuits=lambda: {name: circuit.state for name, circuit in circuits.items()},
        listeners=lambda: changes.listeners,
        background=lags,
    )
