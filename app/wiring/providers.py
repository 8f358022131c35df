"""Makes what reaches the providers: a sender for each channel, behind what protects it, and the account's balance."""

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import stamina
from httpx_aiohttp import AiohttpTransport

from app.outbound import make_transport
from app.providers.circuit import Bulkhead, CircuitBreaker, ProtectedSender
from app.providers.plusofon.channels import PLUSOFON, FlashCallChannel, ReverseCallChannel, VoiceChannel
from app.providers.plusofon.client import PlusofonClient
from app.providers.relay.client import RelaySender
from app.sandbox import SandboxServer, VirtualNetwork, create_sandbox_app
from app.settings import Mode, Settings, SettingsError
from app.store.provider_account import RedisBalanceCache
from app.store.scripts import ScriptRunner
from app.verification.balance import BalancePoller
from app.verification.call_urls import CallbackUrls
from app.verification.channels import Channel
from app.verification.code import derive_key
from app.verification.ports import CallSender

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing

_FOR_LOOK_UPS = 10  # connections beside those of calls, so that these never keep look-ups waiting


@dataclass(frozen=True, slots=True)
class Providers:
    """The providers: who is asked for accounts, by what calls go, and how they are doing."""

    plusofon: PlusofonClient
    senders: Mapping[Channel, CallSender]
    callback_urls: CallbackUrls
    poller: BalancePoller
    circuits: dict[str, CircuitBreaker]

    def protect(self, settings: Settings, senders: Mapping[Channel, CallSender]) -> dict[Channel, CallSender]:
        """Put each provider's circuit breaker and bulkhead in front of its senders.

        The balance pays for Plusofon's calls alone.
        """
        bulkheads = {name: Bulkhead(settings.plusofon.max_connections) for name in self.circuits}
        return {
            channel: ProtectedSender(
                sender,
                circuit=self.circuits[sender.provider],
                bulkhead=bulkheads[sender.provider],
                admit=self.poller.balance.require_enough if sender.provider == PLUSOFON else _admit_all,
            )
            for channel, sender in senders.items()
        }


async def make_providers(
    settings: Settings,
    runner: ScriptRunner,
    sandbox: VirtualNetwork | None,
    stack: AsyncExitStack,
    tracing: "Tracing | None" = None,
) -> Providers:
    """Make them all; what holds connections is closed with the stack."""
    client = await open_plusofon(settings, sandbox, stack)
    callback_urls = CallbackUrls(
        derive_key(settings.names_secret, "hooks"), prefix=f"{settings.reachable_url}/hooks/plusofon/"
    )
    senders = {**_plusofon_channels(client, callback_urls), **await _open_relays(settings, stack, tracing)}
    poller = BalancePoller(
        client,
        RedisBalanceCache(runner, lease=2 * settings.longest_request),
        minimum=settings.min_balance_rub,
        warning=settings.warn_balance_rub,
        clock=time.monotonic,
    )
    failures, open_for = settings.plusofon.circuit_failures, settings.plusofon.circuit_seconds
    circuits = {
        name: CircuitBreaker(name, failures=failures, open_for=open_for)
        for name in sorted({sender.provider for sender in senders.values()})
    }
    return Providers(client, senders, callback_urls, poller, circuits)


def make_network(settings: Settings) -> VirtualNetwork:
    """Make the telephone network of the sandbox."""
    return VirtualNetwork(pace=settings.sandbox.pace_seconds, balance=settings.sandbox.balance_rub)


async def open_plusofon(settings: Settings, sandbox: VirtualNetwork | None, stack: AsyncExitStack) -> PlusofonClient:
    """Make the client of Plusofon; in sandbox mode, of a stand-in that is reached over HTTP all the same.

    Raises:
        SettingsError: in production a stand-in is given, or there is no account.

    """
    if sandbox and settings.mode is not Mode.SANDBOX:
        raise SettingsError(["MODE must be sandbox for calls to go to the virtual telephone network."])
    stamina.instrumentation.set_on_retry_hooks(())  # who retries tells of it; the default would log and count it again
    plusofon = settings.plusofon
    base_url, user_id, token = plusofon.base_url, plusofon.user_id, plusofon.access_token.get_secret_value()
    cabinet_token = plusofon.cabinet_token.get_secret_value() if plusofon.cabinet_token else None
    if not user_id:
        settings.require_sandbox("PLUSOFON_USER_ID")
    if not token:
        settings.require_sandbox("PLUSOFON_ACCESS_TOKEN")
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
            transport=_transport(settings),
        )
    )


def _transport(settings: Settings, max_connections: int = 0) -> AiohttpTransport:
    """Make the way to a provider: directly in sandbox mode, whose providers are on this machine."""
    outbound = settings.outbound
    proxy = None if settings.mode is Mode.SANDBOX else outbound.proxy_url
    return make_transport(max_connections, proxy=proxy, ca_file=outbound.ca_file)


def _plusofon_channels(client: PlusofonClient, callback_urls: CallbackUrls) -> dict[Channel, CallSender]:
    return {
        Channel.VOICE: VoiceChannel(client),
        Channel.FLASH_CALL: FlashCallChannel(client),
        Channel.REVERSE_CALL: ReverseCallChannel(client, callback_urls.url_of),
    }


async def _open_relays(
    settings: Settings, stack: AsyncExitStack, tracing: "Tracing | None"
) -> dict[Channel, CallSender]:
    """Make a sender for each channel that goes to the operator's own URL in place of Plusofon.

    Traces go on there; Plusofon is told of none.
    """
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
                trace_context=tracing.outgoing if tracing else dict,
                transport=_transport(settings, settings.plusofon.max_connections + _FOR_LOOK_UPS),
            )
        )
        for channel in relay.channels
    }


def _admit_all() -> None:
    """Admit a call that costs nothing here."""
