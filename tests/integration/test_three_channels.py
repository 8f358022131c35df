"""Three channels through every layer: real Redis, the sandbox's network, and its hooks over a real port."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from asgi_lifespan import LifespanManager
from redis.asyncio import Redis
from starlette.types import ASGIApp, Receive, Scope, Send

from app.main import create_app
from app.sandbox import MagicNumber, SandboxServer, VirtualNetwork
from app.verification.call_urls import CallbackUrls
from app.verification.channels import Channel
from app.verification.code import derive_key
from app.verification.ports import CallId
from tests.integration.conftest import PACE, SECRET_KEY, sandbox_settings

MTS, BEELINE = "+79101234567", "+79031234567"


class Door:
    """An address for an application that does not exist yet: hooks need to know it before."""

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
class World:
    """The service, and the phones of the sandbox."""

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

    async def until(self, condition: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it tells
        async with asyncio.timeout(5):
            while not (found := await condition()):  # noqa: ASYNC110 - nobody tells when a virtual phone has rung
                await asyncio.sleep(PACE / 2)
        return found

    async def heard(self, phone: str) -> str:
        async def last() -> str | None:
            return self.network.calls_of(phone)[-1].heard

        return str(await self.until(last))

    async def verified(self, started: dict[str, Any]) -> dict[str, Any]:
        async def answer() -> dict[str, Any] | None:
            checked = await self.check(started)
            return checked if checked.get("verified") else None

        found: dict[str, Any] = await self.until(answer)
        return found


@asynccontextmanager
async def world_with(redis_url: str, **settings: Any) -> AsyncIterator[World]:  # noqa: ANN401 - settings
    network, door = VirtualNetwork(pace=PACE), Door()
    async with SandboxServer(door) as server:
        plusofon = {"hook_delay_seconds": 0, **settings.pop("plusofon", {})}
        channels = settings.pop("channels", list(Channel))
        app = create_app(
            sandbox_settings(redis_url, public_url=server.url, plusofon=plusofon, channels=channels, **settings),
            network,
        )
        async with (
            LifespanManager(app) as manager,
            httpx.AsyncClient(transport=httpx.ASGITransport(app=manager.app), base_url="http://verify") as api,
        ):
            door.app = manager.app
            yield World(api, network)


@pytest.fixture
async def world(redis: Redis, redis_url: str) -> AsyncIterator[World]:
    async with world_with(redis_url) as world:
        yield world


async def test_the_code_of_a_flash_call_is_the_end_of_the_number_that_rings(world: World) -> None:
    started = await world.start(BEELINE, channel="flash_call")
    assert (started["channel"], started["code_length"], started["checks_left"]) == ("flash_call", 4, 3)

    code = await world.heard(BEELINE)

    caller = world.network.calls_of(BEELINE)[-1].caller
    assert caller
    assert caller.endswith(code)
    assert (await world.check(started, code=code))["verified"] is True


async def test_a_code_that_the_provider_chose_counts(world: World) -> None:
    started = await world.start(MagicNumber.OTHER_PIN, channel="flash_call")

    code = await world.heard(MagicNumber.OTHER_PIN)

    assert (await world.check(started, code=code))["verified"] is True


@pytest.mark.parametrize("phone", [BEELINE, MagicNumber.HOOK_AS_FORM.value, MagicNumber.HOOK_TWICE.value])
async def test_a_reverse_call_is_verified_when_the_person_has_called(world: World, phone: str) -> None:
    """The announcing hook has come long before: it verifies nothing."""
    started = await world.start(phone, channel="reverse_call")
    assert (started["channel"], started["code_length"]) == ("reverse_call", None)
    assert started["dial"].startswith("+7")
    await asyncio.sleep(5 * PACE)
    assert await world.check(started) == {
        "verified": False,
        "status": "pending",
        "verification_id": started["verification_id"],
        "checks_left": 5,
    }

    await world.dial(phone, started["dial"])

    verified = await world.verified(started)
    assert (verified["status"], verified["phone"]) == ("verified", phone)
    assert verified["token"]
    assert (await world.check(started))["type"] == "/problems/verification-already-used"


async def test_without_a_code_a_phone_alone_verifies_nobody(world: World) -> None:
    """A stranger who knows the number would only have to wait until the person has dialled."""
    started = await world.start(BEELINE, channel="reverse_call")
    await world.dial(BEELINE, started["dial"])
    await asyncio.sleep(5 * PACE)

    answer = await world.api.post("/verify/check", json={"phone": BEELINE})
    guess = await world.api.post("/verify/check", json={"phone": BEELINE, "code": "0000"})
    again = await world.api.post("/verify/start", json={"phone": BEELINE})

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/code")
    assert (guess.status_code, again.status_code) == (404, 429)
    for told in (answer, guess, again):
        assert started["verification_id"] not in told.text
    assert (await world.verified(started))["phone"] == BEELINE


async def test_a_code_for_a_reverse_call_is_refused(world: World) -> None:
    started = await world.start(BEELINE, channel="reverse_call")

    problem = await world.check(started, code="0000")

    assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "#/code")
    assert (await world.check(started))["checks_left"] == 5


async def test_a_second_reverse_call_has_to_wait_for_the_first(redis: Redis, redis_url: str) -> None:
    async with world_with(redis_url, call={"cooldowns_seconds": [0]}) as world:
        first = await world.start(BEELINE, channel="reverse_call")

        again = {"phone": BEELINE, "channel": "reverse_call", "purpose": "password_reset"}
        refused = (await world.api.post("/verify/start", json=again)).json()
        assert (refused["type"], refused["verification_id"]) == ("/problems/call-cooldown", None)
        assert refused["retry_after"] > 250

        assert (await world.start(BEELINE, channels=["reverse_call", "voice"]))["channel"] == "voice"
        await world.api.post(f"/verify/{first['verification_id']}/cancel")
        assert (await world.start(BEELINE, channel="reverse_call"))["dial"]


async def test_the_call_of_another_phone_verifies_nothing(world: World) -> None:
    started = await world.start(MagicNumber.HOOK_OF_ANOTHER, channel="reverse_call")
    await world.dial(MagicNumber.HOOK_OF_ANOTHER, started["dial"])
    await asyncio.sleep(5 * PACE)

    assert (await world.check(started))["status"] == "pending"


async def test_a_hook_sooner_than_anybody_dials_only_announces(redis: Redis, redis_url: str) -> None:
    async with world_with(redis_url, plusofon={"hook_delay_seconds": 60}) as world:
        started = await world.start(BEELINE, channel="reverse_call")
        await world.dial(BEELINE, started["dial"])
        await asyncio.sleep(5 * PACE)

        assert (await world.check(started))["status"] == "pending"


async def test_a_hook_from_an_unknown_address_or_with_a_made_up_secret_is_not_found(
    redis: Redis, redis_url: str
) -> None:
    async with world_with(redis_url, plusofon={"hook_addresses": ["185.54.48.1/32"]}) as world:
        started = await world.start(BEELINE, channel="reverse_call")
        await world.dial(BEELINE, started["dial"])
        await asyncio.sleep(5 * PACE)
        made_up = f"/hooks/plusofon/{started['verification_id']}.1.{'0' * 32}"
        answer = await world.api.post(made_up, json={"key": "k", "phone": BEELINE})

        assert answer.status_code == 404
        assert (await world.check(started))["status"] == "pending"


async def test_a_check_without_a_code_is_only_for_a_reverse_call(world: World) -> None:
    problem = await world.check(await world.start(BEELINE))

    assert problem["type"] == "/problems/validation-failed"
    assert problem["errors"][0]["pointer"] == "#/code"


async def test_the_next_channel_is_used_when_one_refuses_and_the_answer_names_it(world: World) -> None:
    started = await world.start(MagicNumber.VOICE_REFUSED)

    assert (started["channel"], started["calls_placed"]) == ("flash_call", 1)
    assert len(world.network.calls_of(MagicNumber.VOICE_REFUSED)) == 1


async def test_a_phone_of_mts_is_asked_to_call_where_the_settings_say_so(redis: Redis, redis_url: str) -> None:
    async with world_with(redis_url, operator_channels=["mts:reverse_call"]) as world:
        assert (await world.start(MTS))["channel"] == "reverse_call"
        assert (await world.start(BEELINE))["channel"] == "voice"
        assert (await world.start("+79111234567", channels=["voice", "flash_call"]))["channel"] == "voice"


async def test_after_a_call_that_nobody_answered_the_next_goes_another_way(redis: Redis, redis_url: str) -> None:
    async with world_with(redis_url, call={"cooldowns_seconds": [0]}) as world:
        first = await world.start(MagicNumber.BUSY)

        async def ended() -> bool:
            state = (await world.api.get(f"/verify/{first['verification_id']}")).json()
            return bool(state["call"]["status"] == "busy")

        await world.until(ended)
        second = await world.start(MagicNumber.BUSY, verification_id=first["verification_id"])

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
async def test_what_is_no_channel_is_refused(world: World, fields: dict[str, Any], pointer: str) -> None:
    answer = await world.api.post("/verify/start", json={"phone": BEELINE, **fields})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


async def test_a_channel_that_is_not_enabled_is_refused(redis: Redis, redis_url: str) -> None:
    async with world_with(redis_url, channels=["voice"]) as world:
        answer = await world.api.post("/verify/start", json={"phone": BEELINE, "channel": "flash_call"})

    assert answer.status_code == 422
    assert "voice" in answer.json()["detail"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff\x00", b"key=1", b'{"key": [], "phone": {}}', b"a=1&" * 100]
)
async def test_a_hook_that_says_nothing_is_a_problem_and_no_failure(
    redis: Redis, redis_url: str, content: bytes
) -> None:
    async with world_with(redis_url, secret={"key": SECRET_KEY, "names_key": SECRET_KEY}) as world:
        urls = CallbackUrls(derive_key(SECRET_KEY.encode(), "hooks"), prefix="/hooks/plusofon/")
        answer = await world.api.post(urls.url_of(CallId("vrf_0a11b22c33d44e55f667788", 1)), content=content)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
