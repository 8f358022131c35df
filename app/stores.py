"""Opens what is stored in Redis, one object for each feature, from the settings."""

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from app.sandbox.embedded import EmbeddedServer
from app.settings import Settings
from app.settings.policies import make_prices
from app.store.attempts import RedisAttempts
from app.store.audit import RedisAudit
from app.store.call_following import RedisCallQueue
from app.store.connection import AnyRedis, connect_any
from app.store.erasure import RedisPhoneEraser
from app.store.event_stream import RedisChanges
from app.store.fraud_guard import RedisFraudGuard
from app.store.idempotency import RedisIdempotency
from app.store.limits import RedisRateLimiter
from app.store.provider_account import RedisBalanceCache
from app.store.scripts import ScriptRunner, Waited
from app.store.stats import RedisStats
from app.store.tokens import RedisRedemptions
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import RedisOutbox
from app.telemetry.metrics import Metrics
from app.verification.keys import derive_key
from app.verification.stats import parse_zone
from app.verification.store_requests import best_effort


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What is stored in Redis, one object for each feature; they share one runner, and so their writes."""

    redis: AnyRedis
    runner: ScriptRunner
    attempts: RedisAttempts
    audit: RedisAudit
    balance: RedisBalanceCache
    call_queue: RedisCallQueue
    changes: RedisChanges
    fraud_guard: RedisFraudGuard
    idempotency: RedisIdempotency
    limits: RedisRateLimiter
    phone_eraser: RedisPhoneEraser
    redemptions: RedisRedemptions
    stats: RedisStats
    verifications: RedisVerificationStore
    webhooks: RedisOutbox


@asynccontextmanager
async def open_stores(
    settings: Settings, metrics: Metrics, *, webhook_clients: Collection[str], waited: Waited | None = None
) -> AsyncIterator[Stores]:
    """Connect to Redis, and make the stores; close them with the context. Raises SettingsError.

    In sandbox mode without REDIS_URL, the Redis is an embedded server. Webhook events are written for
    ``webhook_clients`` alone. ``waited`` is told how long each script was waited for.
    """
    async with AsyncExitStack() as stack:
        if settings.redis.url is None:
            settings.require_sandbox("REDIS_URL")
        url = settings.redis.url.get_secret_value() if settings.redis.url else stack.enter_context(EmbeddedServer()).url
        redis = connect_any(url, timeout=settings.redis.timeout_seconds)
        stack.push_async_callback(redis.aclose)
        runner = ScriptRunner(
            redis,
            timeout=settings.redis.timeout_seconds,
            prefix=settings.redis.key_prefix,
            wait_replicas=settings.redis.wait_replicas,
            round_trip=metrics.round_trip,
            waited=waited,
        )
        stack.push_async_callback(runner.aclose)
        # Not the key of codes: when that rotates, names stay, so that no verification is lost and no limit is reset.
        phone_key = derive_key(settings.names_secret, "phone")
        lease = 2 * settings.longest_request  # longer than a request to a provider can take
        outbox = RedisOutbox(runner, clients=webhook_clients, dropped=metrics.webhook_events_dropped)
        guard_rules = settings.guard.rules(settings.phone.allowed_prefixes)
        fraud_guard = RedisFraudGuard(runner, guard_rules, key=phone_key)
        limits = RedisRateLimiter(runner, key=phone_key, guard=fraud_guard)
        # One of several clients may have half of the event streams, so that the others always have some.
        listeners, clients = settings.events_listeners, {client for client, _ in settings.api.keys}
        of_client = max(1, listeners // 2) if len(clients) > 1 else listeners
        journal_kept, prices = timedelta(days=settings.journal.days), make_prices(settings)
        attempts = RedisAttempts(
            runner,
            phone_key=phone_key,
            lifetime=timedelta(seconds=settings.code.lifetime_seconds),
            kept=journal_kept,
            prices=prices,
            clock=partial(datetime.now, UTC),
        )
        stores = Stores(
            redis=redis,
            runner=runner,
            attempts=attempts,
            audit=RedisAudit(runner),
            balance=RedisBalanceCache(runner, lease=lease),
            call_queue=RedisCallQueue(runner, per_second=settings.watch_per_second, lease=lease),
            changes=RedisChanges(
                redis, prefix=settings.redis.key_prefix, listeners=listeners, listeners_of_client=of_client
            ),
            fraud_guard=fraud_guard,
            idempotency=RedisIdempotency(runner, key=derive_key(settings.names_secret, "idempotency"), work_for=lease),
            limits=limits,
            phone_eraser=RedisPhoneEraser(runner, attempts, phone_key=phone_key),
            redemptions=RedisRedemptions(runner),
            stats=RedisStats(
                runner, prices=prices, zone=parse_zone(settings.stats.timezone), count_calls=metrics.count_calls
            ),
            verifications=RedisVerificationStore(
                runner, phone_key=phone_key, outbox=outbox, limits=limits, journal_kept=journal_kept
            ),
            webhooks=outbox,
        )
        stack.push_async_callback(lambda: best_effort(stores.fraud_guard.flush()))
        stack.push_async_callback(lambda: best_effort(attempts.flush()))
        stack.push_async_callback(lambda: best_effort(outbox.flush()))
        stack.push_async_callback(stores.stats.aclose)
        stack.push_async_callback(stores.changes.aclose)
        yield stores
