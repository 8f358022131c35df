"""The example relay of docs/relay.md, run as documented and called by the relay's sender."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest

from app.providers.relay.client import RelaySender
from app.sandbox.server import SandboxServer
from app.standard_webhooks import parse_secret, sign
from app.verification.channels import Channel
from app.verification.errors import ProviderRejected
from app.verification.model import CallState, CallStatus, Lang, Placed, Refused
from app.verification.phone import Phone
from app.verification.ports import CallId, CallOrder
from tests.provider_options import http_options
from tests.waiting import until

DOCUMENT = Path(__file__).parents[2] / "docs" / "relay.md"
SECRET = "whsec_bm90IGEgcmVhbCBzZWNyZXQsIGZvciB0ZXN0cw=="
OTHER_SECRET = "whsec_YW5vdGhlciB0aGF0IGlzIG5vIHNlY3JldCBhdCBhbGw="
CALL = "vrf_made_up-1-voice"
ORDER = CallOrder(call_id=CallId("vrf_made_up", 1), phone=Phone("+79001234567"), code="042137", lang=Lang.RU, repeat=2)


class Example:
    """The code of the document, with a telephone system that records the orders."""

    def __init__(self) -> None:
        (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
        self.names: dict[str, Any] = {"__name__": "example"}
        exec(compile(code, "docs/relay.md", "exec"), self.names)
        self.names["ring"] = self._ring
        self.rung: list[dict[str, Any]] = []
        self.url = ""

    async def _ring(self, order: dict[str, Any]) -> None:
        self.rung.append(order)
        self.names["calls"][order["call"]] = "ringing"

    def sender(self, *, secret: str = SECRET, channel: Channel = Channel.VOICE) -> RelaySender:
        return RelaySender(channel, url=f"{self.url}/verify", secret=secret, **http_options(connect_timeout=5))


@pytest.fixture
async def example(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Example]:
    monkeypatch.setenv("RELAY_SECRET", SECRET)
    example = Example()
    async with SandboxServer(example.names["app"]) as server:
        example.url = server.url
        yield example


async def test_an_order_rings_and_its_status_can_be_looked_up(example: Example) -> None:
    async with example.sender() as sender:
        assert await sender.place(ORDER) == Placed(CALL)
        await until(lambda: example.rung)
        assert await sender.fetch_status(CALL) == CallState(CallStatus.RINGING)
    assert [(order["phone"], order["code"]) for order in example.rung] == [("+79001234567", "042137")]


async def test_a_repeated_order_rings_once(example: Example) -> None:
    async with example.sender() as sender:
        outcomes = await asyncio.gather(*(sender.place(ORDER) for _ in range(20)))
    assert set(outcomes) == {Placed(CALL)}
    assert len(example.rung) == 1


async def test_an_order_that_arrives_after_unknown_call_was_answered_is_refused(example: Example) -> None:
    async with example.sender() as sender:
        assert await sender.fetch_status(CALL) is None
        assert isinstance(await sender.place(ORDER), Refused)
        assert await sender.fetch_status(CALL) is None
    assert not example.rung


async def test_a_wrong_secret_is_a_refusal(example: Example) -> None:
    async with example.sender(secret=OTHER_SECRET) as sender:
        outcome = await sender.place(ORDER)
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ProviderRejected)
    assert outcome.error.message == "the signature is wrong"
    assert not example.rung


async def test_an_unsupported_channel_is_a_refusal(example: Example) -> None:
    async with example.sender(channel=Channel.FLASH_CALL) as sender:
        assert isinstance(await sender.place(ORDER), Refused)
    assert not example.rung


@pytest.mark.parametrize("signature", ["", "v1", "v1,", "garbage,garbage", "v1,====="])
async def test_an_invalid_or_old_signature_is_rejected(example: Example, signature: str) -> None:
    headers = sign(parse_secret(SECRET), message_id=CALL, timestamp=0, body=b"{}")  # of 1970
    async with httpx.AsyncClient(base_url=example.url, trust_env=False) as stranger:
        for shown in (headers, {**headers, "webhook-signature": signature}, {}):
            assert (await stranger.post("/verify", content=b"{}", headers=shown)).status_code == 403
            assert (await stranger.get(f"/verify/{CALL}", headers=shown)).status_code == 403
    assert not example.rung


async def test_the_signature_of_one_status_lookup_is_not_valid_for_another_call(example: Example) -> None:
    headers = sign(parse_secret(SECRET), message_id=CALL, timestamp=int(time()), body=b"")
    async with httpx.AsyncClient(base_url=example.url, headers=headers, trust_env=False) as stranger:
        assert (await stranger.get(f"/verify/{CALL}")).json() == {"error": "unknown_call"}
        assert (await stranger.get("/verify/vrf_made_up-2-voice")).status_code == 403
