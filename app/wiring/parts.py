"""Makes the single parts from the settings."""

import ssl
from contextlib import AsyncExitStack
from datetime import timedelta

from redis.asyncio import Redis

from app.api.auth import ApiKeys
from app.api.idempotency import Idempotency
from app.outbound import trust
from app.sandbox.embedded import EmbeddedServer
from app.settings import OPEN_CLIENT, Mode, Settings, make_endpoints
from app.store.connection import connect
from app.store.fraud_guard import RedisFraudGuard
from app.store.idempotency import RedisIdempotency
from app.store.scripts import RoundTrip, ScriptRunner, Waited
from app.store.webhooks import RedisOutbox
from app.tokens import TokenSigner
from app.verification.code import derive_key
from app.verification.deferred import DeferredWrites
from app.webhooks import WebhookDeliverer
from app.webhooks.sender import WebhookSender


def connect_redis(settings: Settings, stack: AsyncExitStack) -> Redis:
    """Connect to the Redis of the settings; in sandbox mode without one, to an embedded server.

    Raises:
        SettingsError: there is none, in production.

    """
    if settings.redis.url is None:
        settings.require_sandbox("REDIS_URL")
    url = settings.redis.url.get_secret_value() if settings.redis.url else stack.enter_context(EmbeddedServer()).url
    redis = connect(url, timeout=settings.redis.timeout_seconds)
    stack.push_async_callback(redis.aclose)
    return redis


def make_runner(
    settings: Settings, redis: Redis, round_trip: RoundTrip | None = None, waited: Waited | None = None
) -> ScriptRunner:
    """Make what runs scripts. Those that share one share its writes."""
    return ScriptRunner(redis, timeout=settings.redis.timeout_seconds, round_trip=round_trip, waited=waited)


def make_guard(settings: Settings, runner: ScriptRunner) -> RedisFraudGuard:
    """Make the fraud guard."""
    return RedisFraudGuard(runner, settings.guard.rules(settings.phone.allowed_prefixes))


def make_idempotency(settings: Settings, runner: ScriptRunner, deferred: DeferredWrites) -> Idempotency:
    """Keep answers through the runner of the verifications, so that both share writes."""
    store = RedisIdempotency(
        runner,
        key=derive_key(settings.names_secret, "idempotency"),
        work_for=2 * settings.longest_request,
    )
    return Idempotency(store=store, deferred=deferred, store_timeout=settings.redis.timeout_seconds)


def make_tokens(settings: Settings) -> TokenSigner:
    """Make what signs proofs."""
    return TokenSigner(
        settings.token_keys,
        issuer=settings.token.issuer,
        lifetime=timedelta(seconds=settings.token.lifetime_seconds),
    )


def make_api_keys(settings: Settings) -> ApiKeys:
    """Return who may call; in sandbox mode without any key, everybody. Raises SettingsError."""
    if not settings.api.keys:
        settings.require_sandbox("API_KEYS")
    return ApiKeys(settings.api.keys, open_as=OPEN_CLIENT if settings.mode is Mode.SANDBOX else None)


def make_metrics_keys(settings: Settings) -> ApiKeys:
    """Return who may read the metrics."""
    if settings.metrics.open or settings.mode is Mode.SANDBOX:
        return ApiKeys((), open_as="everybody")
    return ApiKeys((*settings.metrics.keys, *settings.admin.keys), kind="metrics or admin key")


def make_account_keys(settings: Settings) -> ApiKeys:
    """Return who may read the provider's account: operators, and in sandbox mode without API keys everybody."""
    is_open = settings.mode is Mode.SANDBOX and not settings.api.keys
    return ApiKeys(settings.admin.keys, kind="admin key", open_as=OPEN_CLIENT if is_open else None)


def make_webhooks(settings: Settings, runner: ScriptRunner) -> WebhookDeliverer | None:
    """Make what delivers events, where some client wants any."""
    endpoints = make_endpoints(settings.clients)
    if not endpoints:
        return None
    sender = WebhookSender(
        allow_private=settings.mode is Mode.SANDBOX,
        proxy=settings.outbound.proxy_url,
        ssl_context=trust(ssl.create_default_context(), settings.outbound.ca_file),
    )
    return WebhookDeliverer(RedisOutbox(runner), endpoints, sender=sender)


def make_names_key(settings: Settings) -> bytes:
    """Make the key of names. It is not that of codes: when that rotates, no verification moves and no limit resets."""
    return derive_key(settings.names_secret, "phone")
