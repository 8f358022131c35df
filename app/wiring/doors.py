"""Ways into single parts without the service's API: what the commands ask."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from app.sandbox import VirtualNetwork
from app.settings import Mode, Settings, SettingsError
from app.store.erasure import RedisPhoneEraser
from app.store.stats import RedisStats
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import RedisOutbox
from app.verification.fraud_guard import FraudGuard
from app.verification.ports import ProviderAccounts
from app.verification.service import VerificationService
from app.verification.webhooks import DeadLetters
from app.wiring.parts import connect_redis, make_guard, make_names_key, make_runner
from app.wiring.providers import make_network, open_plusofon
from app.wiring.service import build

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing


@asynccontextmanager
async def open_guard(settings: Settings) -> AsyncIterator[FraudGuard]:
    """Reach the fraud guard without the service, for whoever runs it."""
    async with AsyncExitStack() as stack:
        yield make_guard(settings, make_runner(settings, connect_redis(settings, stack)))


@asynccontextmanager
async def open_dead_letters(settings: Settings) -> AsyncIterator[DeadLetters]:
    """Reach the events that could not be delivered without the service, for whoever runs it."""
    async with AsyncExitStack() as stack:
        yield RedisOutbox(make_runner(settings, connect_redis(settings, stack)))


@asynccontextmanager
async def open_stats(settings: Settings) -> AsyncIterator[RedisStats]:
    """Reach the statistics without the service, for whoever runs it."""
    async with AsyncExitStack() as stack:
        runner = make_runner(settings, connect_redis(settings, stack))
        yield RedisStats(runner, call_price_rub=settings.call.price_rub)


@asynccontextmanager
async def open_verifications(settings: Settings) -> AsyncIterator[RedisVerificationStore]:
    """Reach the verifications of all clients without the service, for whoever runs it."""
    async with AsyncExitStack() as stack:
        runner = make_runner(settings, connect_redis(settings, stack))
        yield RedisVerificationStore(runner, phone_key=make_names_key(settings))


@asynccontextmanager
async def open_phone_eraser(settings: Settings) -> AsyncIterator[RedisPhoneEraser]:
    """Reach what erases all that is kept about a phone, for whoever runs the service."""
    async with AsyncExitStack() as stack:
        redis = connect_redis(settings, stack)
        phone_key = make_names_key(settings)
        yield RedisPhoneEraser(redis, make_runner(settings, redis), phone_key=phone_key)


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Redis]:
    """Reach Redis itself, for whoever runs the service."""
    async with AsyncExitStack() as stack:
        yield connect_redis(settings, stack)


@asynccontextmanager
async def open_accounts(settings: Settings) -> AsyncIterator[ProviderAccounts]:
    """Reach the provider's accounts without the service, for whoever runs it."""
    sandbox = make_network(settings) if settings.mode is Mode.SANDBOX else None
    async with AsyncExitStack() as stack:
        yield await open_plusofon(settings, sandbox, stack)


@asynccontextmanager
async def open_service(settings: Settings, sandbox: VirtualNetwork | None) -> AsyncIterator[VerificationService]:
    """Run the service without its API, for whoever runs it; the calls and webhooks of others are left to others."""
    async with AsyncExitStack() as stack:
        yield (await build(settings, sandbox, stack, in_background=False))["service"]


def open_tracing(settings: Settings) -> "Tracing | None":
    """Make what traces, if somebody wants traces. Raises SettingsError."""
    if not settings.tracing.endpoint:
        return None
    try:
        from app.telemetry.tracing import Tracing  # noqa: PLC0415 - of an extra that few install

        return Tracing.to(settings.tracing.endpoint, version=version("plusofon-verify"))
    except ModuleNotFoundError:
        raise SettingsError(["TRACING_ENDPOINT needs the extra `tracing` of the package."]) from None
    except ValueError:  # its text may repeat a value
        names = ", ".join(sorted(name for name in os.environ if name.startswith("OTEL_")))
        raise SettingsError([f"TRACING_ENDPOINT cannot be used: OpenTelemetry refuses one of {names}."]) from None
