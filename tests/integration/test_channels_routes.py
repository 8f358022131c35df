"""The three channels through every layer: real Redis, the sandbox network, and its callbacks over a real port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from starlette.types import ASGIApp, Receive, Scope, Send

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.sandbox.server import SandboxServer
from app.verification.channels import Channel
from app.verification.follow import CallbackUrls
from app.verification.keys import derive_key
from app.verification.ports import CallId
from tests.integration.conftest import PACE, SECRET_KEY, sandbox_settings
from tests.waiting import eventually, lifespan_of, until

MTS, BEELINE = "+79101234567", "+79031234567"


class LateApp:
    """An application that is set later: callbacks need its address before it exists."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
            return
        assert self.app
        await self.app(scope, receive, send)


@dataclass
class Sandbox:
    """A client of the service, and the virtual phones of the sandbox."""

    api: httpx.AsyncClient
    network: VirtualNetwork

    async def start(self, phone: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
        answer = await self.api.post("/verify/start", json={"phone": phone, **fields})
        assert answer.status_code == 201, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def check(self, started: dict[str, Any], **fields: str) -> dict[str, Any]:
        answer = await self.api.post("/verify/check", json={"verification_id": started["verification_id"], **fields})
        body: dict[str, Any] = answer.json()
        return body

    async def dial(self, phone: str, number: str) -> None:
        answer = await self.api.post(f"/sandbox/phones/{phone}/dial", json={"number": number})
        assert answer.status_code < 300, answer.text

    async def heard(self, phone: str) -> str:
        await until(lambda: self.network.calls_of(phone)[-1].heard)
        return str(self.network.calls_of(phone)[-1].heard)

    async def verified(self, started: dict[str, Any]) -> dict[str, Any]:
        return await eventually(lambda: self.check(started), lambda answer: answer.get("verified"))


@asynccontextmanager
async def sandbox_with(redis_url: str, **settings: Any) -> AsyncIterator[Sandbox]:  # noqa: ANN401 - settings
    network, late_app = VirtualNetwork(pace=PACE), LateApp()
    async with SandboxServer(late_app) as server:
        plusofon = {"hook_delay_seconds": 0, **settings.pop("plusofon", {})}
        channels = settings.pop("channels", list(Channel))
        app = create_app(
            sandbox_settings(redis_url, public_url=server.url, plusofon=plusofon, channels=channels, **settings),
            network,
        )
        async with (
            lifespan_of(app) as manager,
            httpx.AsyncClient(transport=httpx.ASGITransport(app=manager.app), base_url="http://verify") as api,
        ):
            late_app.app = manager.app
            yield Sandbox(api, network)


@pytest.fixture
async def sandbox(redis: Redis, redis_url: str) -> AsyncIterator[Sandbox]:
    async with sandbox_with(redis_url) as sandbox:
        yield sandbox


async def test_the_code_of_a_flash_call_is_the_last_digits_of_the_caller_number(sandbox: Sandbox) -> None:
    started = await sandbox.start(BEELINE, channel="flash_call")
    assert (started["channel"], started["code_length"], started["checks_left"]) == ("flash_call", 4, 3)

    code = await sandbox.heard(BEELINE)

    caller = sandbox.network.calls_of(BEELINE)[-1].caller
    assert caller
    assert caller.endswith(code)
    assert (await sandbox.check(started, code=code))["verified"] is True


async def test_a_code_chosen_by_the_provider_verifies(sandbox: Sandbox) -> None:
    started = await sandbox.start(MagicNumber.OTHER_PIN, channel="flash_call")

    code = await sandbox.heard(MagicNumber.OTHER_PIN)

    assert (await sandbox.check(started, code=code))["verified"] is True


@pytest.mark.parametrize("phone", [BEELINE, MagicNumber.CALLBACK_AS_FORM.value, MagicNumber.CALLBACK_TWICE.value])
async def test_a_reverse_call_is_verified_after_the_end_user_has_called(sandbox: Sandbox, phone: str) -> None:
    """The first callback, which only announces the call, arrives long before and verifies nothing."""
    started = await sandbox.start(phone, channel="reverse_call")
    assert (started["channel"], started["code_length"]) == ("reverse_call", None)
    assert started["dial"].startswith("+7")
    await asyncio.sleep(5 * PACE)
    assert await sandbox.check(started) == {
        "verified": False,
        "status": "pending",
        "verification_id": started["verification_id"],
        "checks_left": 5,
    }

    await sandbox.dial(phone, started["dial"])

    verified = await sandbox.verified(started)
    assert (verified["status"], verified["phone"]) == ("verified", phone)
    assert verified["token"]
    assert (await sandbox.check(started))["type"] == "/problems/verification-already-used"


async def test_a_reverse_call_cannot_be_checked_by_phone_alone(sandbox: Sandbox) -> None:
    """Otherwise an attacker who knows the number would only have to wait until the end user has called."""
    started = await sandbox.start(BEELINE, channel="reverse_call")
    await sandbox.dial(BEELINE, started["dial"])
    await asyncio.sleep(5 * PACE)

    answer = await sandbox.api.post("/verify/check", json={"phone": BEELINE})
    guess = await sandbox.api.post("/verify/check", json={"phone": BEELINE, "code": "0000"})
    again = await sandbox.api.post("/verify/start", json={"phone": BEELINE})

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/code")
    assert (guess.status_code, again.status_code) == (404, 429)
    for response in (answer, guess, again):
        assert started["verification_id"] not in response.text
    assert (await sandbox.verified(started))["phone"] == BEELINE


async def test_a_code_for_a_reverse_call_is_refused(sandbox: Sandbox) -> None:
    started = await sandbox.start(BEELINE, channel="reverse_call")

    problem = await sandbox.check(started, code="0000")

    assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "#/code")
    assert (await sandbox.check(started))["checks_left"] == 5


async def test_a_phone_has_only_one_pending_reverse_call_at_a_time(redis: Redis, redis_url: str) -> None:
    async with sandbox_with(redis_url, call={"cooldowns_seconds": [0]}) as sandbox:
        first = await sandbox.start(BEELINE, channel="reverse_call")

        again = {"phone": BEELINE, "channel": "reverse_call", "purpose": "password_reset"}
        refused = (await sandbox.api.post("/verify/start", json=again)).json()
        assert (refused["type"], refused["verification_id"]) == ("/problems/call-cooldown", None)
        assert refused["retry_after"] > 250

        assert (await sandbox.start(BEELINE, channels=["reverse_call", "voice"]))["channel"] == "voice"
        await sandbox.api.post(f"/verify/{first['verification_id']}/cancel")
        assert (await sandbox.start(BEELINE, channel="reverse_call"))["dial"]


async def test_a_call_from_another_phone_does_not_verify_a_reverse_call(sandbox: Sandbox) -> None:
    started = await sandbox.start(MagicNumber.CALLBACK_OF_ANOTHER, channel="reverse_call")
    await sandbox.dial(MagicNumber.CALLBACK_OF_ANOTHER, started["dial"])
    await asyncio.sleep(5 * PACE)

    assert (await sandbox.check(started))["status"] == "pending"


async def test_a_callback_before_the_hook_delay_does_not_verify_a_reverse_call(redis: Redis, redis_url: str) -> None:
    async with sandbox_with(redis_url, plusofon={"hook_delay_seconds": 60}) as sandbox:
        started = await sandbox.start(BEELINE, channel="reverse_call")
        await sandbox.dial(BEELINE, started["dial"])
        await asyncio.sleep(5 * PACE)

        assert (await sandbox.check(started))["status"] == "pending"


async def test_a_callback_from_an_unknown_address_or_with_a_forged_secret_is_a_404(
    redis: Redis, redis_url: str
) -> None:
    async with sandbox_with(redis_url, plusofon={"hook_addresses": ["185.54.48.1/32"]}) as sandbox:
        started = await sandbox.start(BEELINE, channel="reverse_call")
        await sandbox.dial(BEELINE, started["dial"])
        await asyncio.sleep(5 * PACE)
        made_up = f"/hooks/plusofon/{started['verification_id']}.1.{'0' * 32}"
        answer = await sandbox.api.post(made_up, json={"key": "k", "phone": BEELINE})

        assert answer.status_code == 404
        assert (await sandbox.check(started))["status"] == "pending"


async def test_only_a_reverse_call_can_be_checked_without_a_code(sandbox: Sandbox) -> None:
    problem = await sandbox.check(await sandbox.start(BEELINE))

    assert problem["type"] == "/problems/validation-failed"
    assert problem["errors"][0]["pointer"] == "#/code"


async def test_the_next_channel_is_used_when_one_refuses_and_the_response_shows_it(sandbox: Sandbox) -> None:
    started = await sandbox.start(MagicNumber.VOICE_REFUSED)

    assert (started["channel"], started["calls_placed"]) == ("flash_call", 1)
    assert len(sandbox.network.calls_of(MagicNumber.VOICE_REFUSED)) == 1


async def test_operator_channels_choose_the_channel_by_operator(redis: Redis, redis_url: str) -> None:
    async with sandbox_with(redis_url, operator_channels=["mts:reverse_call"]) as sandbox:
        assert (await sandbox.start(MTS))["channel"] == "reverse_call"
        assert (await sandbox.start(BEELINE))["channel"] == "voice"
        assert (await sandbox.start("+79111234567", channels=["voice", "flash_call"]))["channel"] == "voice"


async def test_after_a_busy_call_the_resend_uses_another_channel(redis: Redis, redis_url: str) -> None:
    async with sandbox_with(redis_url, call={"cooldowns_seconds": [0]}) as sandbox:
        first = await sandbox.start(MagicNumber.BUSY)

        async def ended() -> bool:
            state = (await sandbox.api.get(f"/verify/{first['verification_id']}")).json()
            return bool(state["call"]["status"] == "busy")

        await eventually(ended)
        second = await sandbox.start(MagicNumber.BUSY, verification_id=first["verification_id"])

        assert second["verification_id"] == first["verification_id"]
        assert (first["channel"], second["channel"]) == ("voice", "flash_call")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"channel": "pigeon"}, "#/channel"),
        ({"channel": "voice", "channels": ["voice"]}, "#"),
        ({"channels": []}, "#/channels"),
        ({"channels": ["voice"] * 4}, "#/channels"),
    ],
)
async def test_an_invalid_channel_is_refused(sandbox: Sandbox, fields: dict[str, Any], pointer: str) -> None:
    answer = await sandbox.api.post("/verify/start", json={"phone": BEELINE, **fields})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


async def test_a_channel_that_is_not_enabled_is_refused(redis: Redis, redis_url: str) -> None:
    async with sandbox_with(redis_url, channels=["voice"]) as sandbox:
        answer = await sandbox.api.post("/verify/start", json={"phone": BEELINE, "channel": "flash_call"})

    assert answer.status_code == 422
    assert "voice" in answer.json()["detail"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff\x00", b"key=1", b'{"key": [], "phone": {}}', b"a=1&" * 100]
)
async def test_an_invalid_callback_body_is_a_422(redis: Redis, redis_url: str, content: bytes) -> None:
    async with sandbox_with(redis_url, secret={"key": SECRET_KEY, "names_key": SECRET_KEY}) as sandbox:
        urls = CallbackUrls(derive_key(SECRET_KEY.encode(), "hooks"), prefix="/hooks/plusofon/")
        answer = await sandbox.api.post(urls.url_of(CallId("vrf_0a11b22c33d44e55f667788", 1)), content=content)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
