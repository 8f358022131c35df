"""Plusofon's channels behind the CallSender port: the request of each, and the outcome of its response."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
import respx

from app.providers.plusofon.channels import FlashCallChannel, ReverseCallChannel, VoiceChannel
from app.providers.plusofon.client import PlusofonClient
from app.verification.errors import ProviderError, ProviderRejected
from app.verification.model import CallState, CallStatus, Lang, Placed, Refused
from app.verification.phone import Phone
from app.verification.ports import CallId, CallOrder, CallSender
from tests.provider_options import http_options

BASE_URL = "https://plusofon.test"
PHONE = Phone("+79001234567")


@pytest.fixture
def plusofon() -> respx.Router:
    return respx.Router(base_url=BASE_URL)


@pytest.fixture
async def client(plusofon: respx.Router) -> AsyncIterator[PlusofonClient]:
    async with PlusofonClient(
        base_url=BASE_URL,
        user_id="made-up-user",
        access_token="not-a-real-token",
        **http_options(transport=httpx.MockTransport(plusofon.async_handler)),
    ) as client:
        yield client


def hook_url(name: CallId) -> str:
    return f"https://service.test/hooks/{name.verification_id}/{name.call_number}"


def order(code: str | None) -> CallOrder:
    return CallOrder(call_id=CallId("vrf_made-up", 2), phone=PHONE, code=code, lang=Lang.EN, repeat=3)


def channels(client: PlusofonClient) -> dict[str, CallSender]:
    """Return each channel as a ``CallSender``, so that mypy checks it against the port."""
    return {
        "voice": VoiceChannel(client),
        "flash_call": FlashCallChannel(client),
        "reverse_call": ReverseCallChannel(client, hook_url),
    }


any_channel = pytest.mark.parametrize("channel", ["voice", "flash_call", "reverse_call"])


@any_channel
async def test_every_channel_belongs_to_plusofon_and_is_always_ready(client: PlusofonClient, channel: str) -> None:
    sender = channels(client)[channel]
    assert sender.provider == "plusofon"
    sender.require_ready()


@dataclass(frozen=True)
class Case:
    """A channel's order, the expected request, the provider's response and the expected outcome."""

    channel: str
    code: str | None
    path: str
    asked: dict[str, object]
    answer: dict[str, str]
    placed: Placed


CASES = [
    Case(
        channel="voice",
        code="042137",
        path="/api/v1/flash-call/call",
        asked={"phone": "89001234567", "pin": "042137", "lang": "en", "repeat": 3},
        answer={"call_id": "call-1"},
        placed=Placed("call-1"),
    ),
    Case(
        channel="flash_call",
        code="0421",
        path="/api/v1/flash-call/send",
        asked={"phone": "89001234567", "pin": "0421"},
        answer={"key": "key-1", "pin": "7788", "operator": "MTS"},
        placed=Placed("key-1", code="7788", operator="mts"),
    ),
    Case(
        channel="reverse_call",
        code=None,
        path="/api/v1/flash-call/call-to-auth",
        asked={"phone": "89001234567", "hook_url": "https://service.test/hooks/vrf_made-up/2"},
        answer={"key": "key-1", "phone": "88005553535"},
        placed=Placed("key-1", dial=Phone("+78005553535")),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.channel)
async def test_each_channel_sends_its_own_request_and_reads_its_response(
    client: PlusofonClient, plusofon: respx.Router, case: Case
) -> None:
    route = plusofon.post(case.path).respond(json={"success": True, "data": case.answer})
    assert await channels(client)[case.channel].place(order(case.code)) == case.placed
    assert json.loads(route.calls.last.request.content) == case.asked


@any_channel
async def test_success_false_is_a_refusal_on_every_channel(
    client: PlusofonClient, plusofon: respx.Router, channel: str
) -> None:
    plusofon.post().respond(json={"success": False, "message": "no"})
    outcome = await channels(client)[channel].place(order("0421"))
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ProviderRejected)


async def test_only_voice_calls_support_status_lookups(client: PlusofonClient, plusofon: respx.Router) -> None:
    plusofon.post("/api/v1/flash-call/status").respond(json={"success": True, "data": {"status": "ringing"}})
    senders = channels(client)
    assert {name for name, sender in senders.items() if sender.supports_status} == {"voice"}
    assert await senders["voice"].fetch_status("call-1") == CallState(CallStatus.RINGING)


@pytest.mark.parametrize("channel", ["flash_call", "reverse_call"])
async def test_a_status_lookup_of_another_channel_raises_a_provider_error(client: PlusofonClient, channel: str) -> None:
    with pytest.raises(ProviderError):
        await channels(client)[channel].fetch_status("key-1")
