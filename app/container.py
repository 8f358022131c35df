"""Builds every object of the service from the settings, once, and closes those that hold a connection."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

import httpx

from app.api_keys import AccessKeys, ApiKeys
from app.background import Background
from app.outbound import trust
from app.providers.circuit import Bulkhead, CircuitBreaker, CircuitState, ProtectedSender
from app.providers.http import make_transport
from app.providers.plusofon.channels import PLUSOFON, make_senders
from app.providers.plusofon.client import PlusofonClient
from app.providers.relay.client import RelaySender
from app.sandbox.network import VirtualNetwork
from app.sandbox.plusofon_api import create_sandbox_app
from app.sandbox.server import SandboxServer
from app.sandbox.webhook_log import WebhookLog
from app.settings import OPEN_CLIENT, Mode, Settings, SettingsError
from app.settings.clients import make_endpoints
from app.settings.policies import make_policies
from app.store.cluster import Cluster
from app.store.sentinel import PrimaryPool
from app.store.webhooks import RedisOutbox
from app.stores import Stores, open_stores
from app.telemetry.event_log import log_event
from app.telemetry.exposition import Exposition
from app.telemetry.metrics import Metrics
from app.tokens import TokenSigner
from app.verification.call_following import CallWatcher
from app.verification.channels import Channel
from app.verification.code import CodeDigester
from app.verification.domain_events import AttemptFinished, DomainEvent, Publish
from app.verification.follow import CallbackUrls
from app.verification.idempotency import Idempotency
from app.verification.keys import derive_key
from app.verification.policy import Allowance
from app.verification.ports import CallSender, Ports, ProviderAccounts
from app.verification.provider_account import AccountReader, Balance, BalancePoller
from app.verification.service import VerificationService
from app.verification.store_requests import DeferredWrites
from app.verification.test_numbers import TestNumbers
from app.webhooks.deliverer import WebhookDeliverer
from app.webhooks.endpoint import WebhookEndpoint
from app.webhooks.recording import RecordingSender, with_all_clients
from app.webhooks.sender import WebhookSender

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing

_STATUS_CONNECTIONS = 10  # beside those of calls, so that these never keep status requests waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """A sender for each channel, and the state of the providers behind them."""

    senders: Mapping[Channel, CallSender]
    circuits: Mapping[str, CircuitBreaker]
    accounts: ProviderAccounts
    account_reader: AccountReader
    balance: Balance
    balance_poller: BalancePoller
    callback_urls: CallbackUrls

    def circuit_states(self) -> dict[str, CircuitState]:
        """Return the state of each provider's circuit breaker."""
        return {name: circuit.state for name, circuit in self.circuits.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """Every object that routes and commands use.

    ``stopping`` is set with the signal to stop, and ends event streams. These send a comment after ``stream_heartbeat``
    seconds of silence.
    """

    service: VerificationService
    stores: Stores
    providers: Providers
    keys: AccessKeys
    tokens: TokenSigner
    idempotency: Idempotency
    callback_networks: Sequence[IPv4Network | IPv6Network]
    metrics: Metrics
    exposition: Exposition
    stopping: asyncio.Event
    stream_heartbeat: float = 15


@asynccontextmanager
async def open_container(
    settings: Settings,
    network: VirtualNetwork | None = None,
    *,
    webhook_log: WebhookLog | None = None,
    tracing: "Tracing | None" = None,
    in_background: bool = False,
) -> AsyncIterator[Container]:
    """Build all objects, and close them with the context. Raises SettingsError.

    In sandbox mode calls go to ``network`` in place of Plusofon, and webhooks are recorded in ``webhook_log``. Without
    ``in_background`` nothing runs beside what the caller asks for: no calls are followed and no webhooks delivered.
    """
    async with AsyncExitStack() as stack:
        clients = [client for client, _ in settings.api.keys] or [OPEN_CLIENT]
        builder = Builder(settings, stack, tracing, webhook_log, Metrics(clients))
        stack.callback(builder.metrics.share)
        stores = await builder.open_stores()
        providers = await builder.open_providers(stores, network)
        deferred = DeferredWrites()
        stack.push_async_callback(deferred.aclose)
        tokens = make_tokens(settings)
        publish = builder.make_publish(stores)
        service = builder.make_service(stores, providers, tokens, deferred, publish)
        background = Background()
        exposition = builder.make_exposition(stores, providers, background)
        if in_background:
            watcher = CallWatcher(stores.call_queue, service.calls.follow, timeout=1.5 * settings.longest_request)
            background.add("calls", watcher.step)
            background.add("balance", providers.balance_poller.step)
            background.add("fraud_guard", stores.fraud_guard.flush)
            background.add("stats", stores.stats.flush)
            if settings.journal.days:
                background.add("attempts", partial(stores.attempts.report, lambda one: publish(AttemptFinished(one))))
                background.add("refused_starts", stores.attempts.flush)
            background.add("metrics", exposition.step)
            if isinstance(stores.redis, Cluster):
                background.add("cluster", stores.redis.step)
            elif isinstance(pool := stores.redis.connection_pool, PrimaryPool):
                background.add("sentinel", pool.step)
            if deliverer := builder.make_deliverer(stores.webhooks):
                background.add("webhooks", (await stack.enter_async_context(deliverer)).step)
            await stack.enter_async_context(background)
        yield Container(
            service=service,
            stores=stores,
            providers=providers,
            keys=make_keys(settings),
            tokens=tokens,
            idempotency=Idempotency(store=stores.idempotency, deferred=deferred, store_timeout=stores.runner.timeout),
            callback_networks=settings.plusofon.hook_addresses,
            metrics=builder.metrics,
            exposition=exposition,
            stopping=asyncio.Event(),
        )


def make_network(settings: Settings) -> VirtualNetwork | None:
    """Return a new telephone network in sandbox mode, and None in production."""
    if settings.mode is not Mode.SANDBOX:
        return None
    return VirtualNetwork(pace=settings.sandbox.pace_seconds, balance=settings.sandbox.balance_rub)


def make_tokens(settings: Settings) -> TokenSigner:
    """Return what signs and verifies tokens. Raises SettingsError: in production there are no keys."""
    lifetime = timedelta(seconds=settings.token.lifetime_seconds)
    return TokenSigner(settings.token_keys, issuer=settings.token.issuer, lifetime=lifetime)


def make_keys(settings: Settings) -> AccessKeys:
    """Return the keys that each kind of request needs. Raises SettingsError: in production there are no API keys."""
    if not settings.api.keys:
        settings.require_sandbox("API_KEYS")
    is_sandbox, admins = settings.mode is Mode.SANDBOX, settings.admin.keys
    if is_sandbox or settings.metrics.open:
        metrics = ApiKeys((), open_as="everybody")
    else:
        metrics = ApiKeys((*settings.metrics.keys, *admins), kind="metrics or admin key")
    return AccessKeys(
        clients=ApiKeys(settings.api.keys, open_as=OPEN_CLIENT if is_sandbox else None),
        # A sandbox is open until it has keys of any kind: then it may be reached by more than its developer.
        admins=ApiKeys(admins, kind="admin key", open_as=OPEN_CLIENT if is_sandbox and not settings.api.keys else None),
        metrics=metrics,
    )


@dataclass(frozen=True, slots=True)
class Builder:
    """Builds groups of objects; ``stack`` closes them."""

    settings: Settings
    stack: AsyncExitStack
    tracing: "Tracing | None" = None
    webhook_log: WebhookLog | None = None
    metrics: Metrics = field(default_factory=Metrics)

    async def open_stores(self) -> Stores:
        """Connect to Redis, and make the stores."""
        waited = self.tracing.waited if self.tracing else None
        return await self.stack.enter_async_context(
            open_stores(self.settings, self.metrics, webhook_clients=self.endpoints, waited=waited)
        )

    async def open_providers(self, stores: Stores, network: VirtualNetwork | None) -> Providers:
        """Make the client of each provider, and a sender for each channel behind its circuit breaker and bulkhead."""
        settings = self.settings
        plusofon = await self.open_plusofon(network)
        callback_urls = CallbackUrls(
            derive_key(settings.names_secret, "hooks"), prefix=f"{settings.reachable_url}/hooks/plusofon/"
        )
        balance = Balance(minimum=settings.min_balance_rub, warning=settings.warn_balance_rub, clock=time.monotonic)
        senders = make_senders(plusofon, callback_urls.url_of) | await self._open_relays()
        if unserved := sorted(settings.used_channels - senders.keys()):
            raise SettingsError([f"CHANNELS: no provider serves {unserved[0]}; it may be one of RELAY_CHANNELS."])
        failures, open_for = settings.plusofon.circuit_failures, settings.plusofon.circuit_seconds
        names = sorted({sender.provider for sender in senders.values()})
        circuits = {name: CircuitBreaker(name, failures=failures, open_for=open_for) for name in names}
        bulkheads = {name: Bulkhead(settings.plusofon.max_connections) for name in names}
        open_span = self.tracing.provider_request if self.tracing else None
        protected = {
            channel: ProtectedSender(
                sender,
                channel=channel,
                circuit=circuits[sender.provider],
                bulkhead=bulkheads[sender.provider],
                # The balance pays for Plusofon's calls alone.
                admit=balance.require_enough if sender.provider == PLUSOFON else lambda: None,
                record_time=self.metrics.provider_call,
                open_span=open_span,
            )
            for channel, sender in senders.items()
        }
        return Providers(
            senders=protected,
            circuits=circuits,
            accounts=plusofon,
            account_reader=AccountReader(plusofon),
            balance=balance,
            balance_poller=BalancePoller(plusofon, stores.balance, balance, stores.stats.observe),
            callback_urls=callback_urls,
        )

    async def open_plusofon(self, network: VirtualNetwork | None) -> PlusofonClient:
        """Make the client of Plusofon, or of the sandbox's ``network``, served over HTTP as well. Raises SettingsError.

        Only in sandbox mode there may be a network, or no credentials.
        """
        settings = self.settings.plusofon
        base_url, user_id, token = settings.base_url, settings.user_id, settings.access_token.get_secret_value()
        cabinet_token = settings.cabinet_token.get_secret_value() if settings.cabinet_token else None
        if not user_id:
            self.settings.require_sandbox("PLUSOFON_USER_ID")
        if not token:
            self.settings.require_sandbox("PLUSOFON_ACCESS_TOKEN")
        if network:
            if self.settings.mode is not Mode.SANDBOX:
                raise SettingsError(["MODE must be sandbox for calls to go to the virtual telephone network."])
            user_id, token, cabinet_token = "sandbox", "sandbox-access-token", None
            accepted = self.settings.sandbox.access_token
            accepted_token = accepted.get_secret_value() if accepted else token
            app = create_sandbox_app(network, user_id=user_id, access_token=accepted_token)
            base_url = (await self.stack.enter_async_context(SandboxServer(app))).url
        return await self.stack.enter_async_context(
            PlusofonClient(
                base_url=base_url,
                user_id=user_id,
                access_token=token,
                cabinet_token=cabinet_token,
                phone_prefix=settings.phone_prefix,
                connect_timeout=settings.connect_timeout_seconds,
                timeout=settings.timeout_seconds,
                max_connections=settings.max_connections + _STATUS_CONNECTIONS,
                transport=self._make_transport(),
            )
        )

    async def _open_relays(self) -> dict[Channel, CallSender]:
        """Make a sender for each channel that goes to the operator's own URL. Only there traces are continued."""
        relay = self.settings.relay
        if relay.url is None or relay.secret is None:  # the settings require both where channels are named
            return {}
        return {
            channel: await self.stack.enter_async_context(
                RelaySender(
                    channel,
                    url=relay.url.get_secret_value(),
                    secret=relay.secret.get_secret_value(),
                    connect_timeout=relay.connect_timeout_seconds,
                    timeout=relay.timeout_seconds,
                    trace_context=self.tracing.outgoing if self.tracing else dict,
                    max_connections=self.settings.plusofon.max_connections + _STATUS_CONNECTIONS,
                    transport=self._make_transport(),
                )
            )
            for channel in relay.channels
        }

    def _make_transport(self) -> httpx.AsyncBaseTransport:
        """Make the way to a provider; without the proxy in sandbox mode, whose providers are on this machine."""
        outbound = self.settings.outbound
        proxy = None if self.settings.mode is Mode.SANDBOX else outbound.proxy_url
        return make_transport(proxy=proxy, ca_file=outbound.ca_file)

    def make_publish(self, stores: Stores) -> Publish:
        """Make what domain events are published to."""

        def publish(event: DomainEvent) -> None:
            self.metrics.observe(event)
            stores.stats.observe(event)
            stores.attempts.observe(event)
            log_event(event)

        return publish

    def make_service(
        self, stores: Stores, providers: Providers, tokens: TokenSigner, deferred: DeferredWrites, publish: Publish
    ) -> VerificationService:
        """Make the use cases."""
        settings = self.settings
        return VerificationService(
            Ports(
                store=stores.verifications,
                limits=stores.limits,
                guard=stores.fraud_guard,
                senders=providers.senders,
                schedule=stores.call_queue,
                tokens=tokens,
                digester=CodeDigester(settings.secret_keys),
                policies=make_policies(settings),
                test_numbers=TestNumbers(dict(settings.test_numbers), lambda: datetime.now(UTC).date()),
                publish=publish,
                deferred=deferred,
                store_timeout=stores.runner.timeout,
            )
        )

    def make_exposition(self, stores: Stores, providers: Providers, background: Background) -> Exposition:
        """Collect the gauges of all components."""
        policies = make_policies(self.settings)
        budget = Allowance(policies.default.calls_per_day, "everybody")

        def refresh() -> None:
            self.metrics.set_process(
                circuits=providers.circuit_states(),
                listeners=stores.changes.listeners,
                background=background.gauges(),
            )

        return Exposition(
            registry=self.metrics.registry,
            version=version("plusofon-verify"),
            gauges=(
                stores.runner.gauges,
                providers.balance.gauges,
                policies.gauges,
                partial(stores.limits.gauges, budget),
                stores.stats.gauges,
                stores.fraud_guard.gauges,
                stores.call_queue.gauges,
                stores.webhooks.gauges,
            ),
            refresh=refresh,
        )

    def make_deliverer(self, outbox: RedisOutbox) -> WebhookDeliverer | None:
        """Make what delivers webhooks, if some client has an endpoint."""
        settings = self.settings
        if not self.endpoints:
            return None
        make_sender = partial(RecordingSender, log=self.webhook_log) if self.webhook_log else WebhookSender
        sender = make_sender(
            allow_private=settings.mode is Mode.SANDBOX,
            proxy=settings.outbound.proxy_url,
            ssl_context=trust(ssl.create_default_context(), settings.outbound.ca_file),
        )
        return WebhookDeliverer(outbox, self.endpoints, sender=sender)

    @property
    def endpoints(self) -> Mapping[str, WebhookEndpoint]:
        """The webhook endpoints by client; where webhooks are recorded, every client has one."""
        endpoints = make_endpoints(self.settings.clients)
        if self.webhook_log is None:
            return endpoints
        return with_all_clients(endpoints, {key.client for key in self.settings.api.keys} or {OPEN_CLIENT})
