"""Makes the single parts from the settings."""

import ssl
from contextlib import AsyncExitStack
from datetime import timedelta

from redis.asyncio import Redis

from app.api.auth import ApiKeys
from app.outbound import trust
from app.settings import Mode, Settings, make_endpoints
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.events import RedisOutbox
from app.store.guard import RedisFraudGuard
from app.store.idempotency import RedisIdempotency
from app.store.scripts import RoundTrip, ScriptRunner, Waited
from app.tokens import TokenSigner
from app.verification.code import derive_key
from app.webhooks import WebhookDeliverer
from app.webhooks.sender import WebhookSender


def connect_redis(settings: Settings, stack: AsyncExitStack) -> Redis:
    """Connect to the Redis of the settings; without one (only in sandbox mode) to an embedded server."""
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


def make_idempotency(settings: Settings, runner: ScriptRunner) -> RedisIdempotency:
    """Keep answers through the runner of the verifications, so that both share writes."""
    return RedisIdempotency(
        runner,
        key=derive_key(settings.names_secret, "idempotency"),
        claim_for=2 * settings.longest_request,
    )


def make_tokens(settings: Settings) -> TokenSigner:
    """Make what signs proofs."""
    return TokenSigner(
        settings.token_keys,
        issuer=settings.token.issuer,
        lifetime=timedelta(seconds=settings.token.lifetime_seconds),
    )


def make_metrics_keys(settings: Settings) -> ApiKeys:
    """Tell who may read the metrics."""
    if settings.metrics.open or settings.mode is Mode.SANDBOX:
        return ApiKeys((), open_as="everybody")
    return ApiKeys((*settings.metrics.keys, *settings.admin.keys), kind="metrics or admin key")


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
