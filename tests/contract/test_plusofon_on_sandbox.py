"""The Plusofon client against the sandbox over real HTTP: the outcome of every magic number."""

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from app.providers.plusofon.client import PlusofonClient
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.sandbox.plusofon_api import create_sandbox_app
from app.sandbox.server import SandboxServer
from app.verification.errors import BalanceTooLow, ProviderRejected
from app.verification.model import CallOutcome, CallState, CallStatus, Lang, Placed, ProviderAccount, Refused, Unknown
from app.verification.phone import Phone
from tests.provider_options import http_options
from tests.waiting import eventually

PHONE = "+79001234567"
PACE = 0.02


@pytest.fixture
def network() -> VirtualNetwork:
    return VirtualNetwork(pace=PACE)


@pytest.fixture
async def server(network: VirtualNetwork) -> AsyncIterator[SandboxServer]:
    app = create_sandbox_app(network, user_id="0", access_token="not-a-token", cabinet_token="not-a-cabinet-token")
    async with SandboxServer(app) as server:
        yield server


def client_of(
    server: SandboxServer, *, access_token: str = "not-a-token", prefix: str = "8", timeout: float = 20
) -> PlusofonClient:
    return PlusofonClient(
        base_url=server.url,
        user_id="0",
        access_token=access_token,
        cabinet_token="not-a-cabinet-token",
        phone_prefix="8" if prefix == "8" else "7",
        **http_options(connect_timeout=timeout / 2, timeout=timeout),
    )


async def call(client: PlusofonClient, phone: str = PHONE) -> CallOutcome:
    return await client.initiate_call(Phone(phone), "0123", Lang.EN, 2)


@pytest.mark.parametrize("prefix", ["8", "7"])
async def test_a_call_is_placed_heard_and_completed(
    server: SandboxServer, network: VirtualNetwork, prefix: str
) -> None:
    async with client_of(server, prefix=prefix) as client:
        outcome = await call(client)
        assert isinstance(outcome, Placed)
        ref = outcome.call_ref
        await eventually(lambda: client.check_call_status(ref), lambda state: state == CallState(CallStatus.COMPLETED))

    (placed,) = network.calls_of(PHONE)
    assert (placed.call_id, placed.heard, placed.lang, placed.repeat) == (outcome.call_ref, "0123", Lang.EN, 2)


@pytest.mark.parametrize(
    ("number", "error", "calls"),
    [
        (MagicNumber.REFUSED, ProviderRejected, 0),
        (MagicNumber.NO_BALANCE, BalanceTooLow, 0),
        (MagicNumber.NO_ACCESS, ProviderRejected, 0),
        (MagicNumber.NO_REPLY_PLACED, None, 1),
        (MagicNumber.NO_REPLY_NOT_PLACED, None, 0),
    ],
)
async def test_magic_numbers_give_refused_or_unknown_calls(
    server: SandboxServer, network: VirtualNetwork, number: MagicNumber, error: type[Exception] | None, calls: int
) -> None:
    async with client_of(server, timeout=20 if error else 2) as client:
        await client.get_balance()  # the call is placed on the connection of this request
        outcome = await call(client, number)

    if error is None:
        assert isinstance(outcome, Unknown)
    else:
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, error)
    assert len(network.calls_of(number)) == calls


async def test_a_wrong_token_or_an_unknown_call_is_rejected(server: SandboxServer, network: VirtualNetwork) -> None:
    for token in ("wrong", "not-a-cabinet-token"):
        async with client_of(server, access_token=token) as client:
            outcome = await call(client)
            assert isinstance(outcome, Refused)
            assert isinstance(outcome.error, ProviderRejected)
    async with client_of(server) as client:
        with pytest.raises(ProviderRejected):
            await client.check_call_status("no-such-call")
    assert network.calls_of(PHONE) == []


async def test_the_account_is_returned_without_a_token_and_calls_reduce_the_balance(server: SandboxServer) -> None:
    async with client_of(server) as client:
        assert await client.get_account() == [ProviderAccount("7", "Sandbox")]
        before = await client.get_balance()
        await call(client)
        assert before - await client.get_balance() == Decimal(3)
