"""Which part of the service answers which question of the metrics, and who is told what happens."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from app.background import Background
from app.resilience import CircuitBreaker
from app.store.call_queue import RedisCallQueue
from app.store.changes import RedisChanges
from app.store.events import RedisOutbox
from app.store.stats import RedisStats
from app.telemetry.exposition import Facts, OfProcess
from app.telemetry.metrics import Metrics
from app.verification.balance import Balance
from app.verification.channel import Channel
from app.verification.guard import FraudGuard
from app.verification.happenings import Happening, Observe
from app.verification.policy import Allowance
from app.verification.ports import CallSender

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing


def tell(*observers: Observe) -> Observe:
    """Tell each of them what happens."""

    def observe(happening: Happening) -> None:
        for observer in observers:
            observer(happening)

    return observe


def watch(
    senders: Mapping[Channel, CallSender], metrics: Metrics, tracing: "Tracing | None"
) -> dict[Channel, CallSender]:
    """Time each request to a provider, and trace it where traces are wanted."""
    timed = {channel: metrics.timed(channel, sender) for channel, sender in senders.items()}
    return {channel: tracing.traced(channel, sender) for channel, sender in timed.items()} if tracing else timed


def facts_of(
    *,
    stats: RedisStats,
    guard: FraudGuard,
    balance: Balance,
    minimum_rub: Decimal,
    warning_rub: Decimal,
    queue: RedisCallQueue,
    outbox: RedisOutbox,
    budget: Allowance,
    limits_key: bytes,
) -> Facts:
    """Name what is the same whichever worker is asked."""

    async def calls_today() -> int:
        return (await stats.read()).calls

    async def spend_today() -> Decimal:
        return (await stats.read()).spend_rub

    async def blocks() -> int:
        return len(await guard.blocks())

    async def watcher_lag() -> float:
        return (await queue.lag()).total_seconds()

    async def webhook_lag() -> float:
        return (await outbox.backlog()).lag.total_seconds()

    async def webhooks_pending() -> int:
        backlog = await outbox.backlog()
        return backlog.queued + backlog.retries

    async def webhooks_dead() -> int:
        return (await outbox.backlog()).dead

    return Facts(
        balance_rub=lambda: balance.rub,
        balance_minimum_rub=lambda: minimum_rub,
        balance_warning_rub=lambda: warning_rub,
        spend_today_rub=spend_today,
        calls_today=calls_today,
        call_budget=lambda: budget.limit.count,
        call_budget_used=lambda: stats.used(budget, key=limits_key),
        fraud_blocks=blocks,
        watcher_lag_seconds=watcher_lag,
        webhook_lag_seconds=webhook_lag,
        webhooks_pending=webhooks_pending,
        webhooks_dead=webhooks_dead,
    )


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
