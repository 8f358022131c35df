"""The callbacks of the sandbox's reverse calls, as received by an HTTP server."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from app.sandbox import provider_callbacks
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.sandbox.plusofon_api import create_sandbox_app
from app.sandbox.provider_callbacks import ProviderCallback, open_callback_sender
from app.sandbox.server import SandboxServer
from tests.waiting import PATIENCE, until

CALL_TO_AUTH = "/api/v1/flash-call/call-to-auth"
HEADERS = {"Client": "0", "Authorization": "Bearer calls"}
PHONE = "+79001234567"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


@dataclass
class Listener:
    """Record each callback as its content type and fields."""

    statuses: list[int] = field(default_factory=list)  # of the next responses; then 200
    hang: bool = False
    posted: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    followed: int = 0
    url: str = ""

    async def hook(self, request: Request) -> Response:
        kind, body = request.headers["Content-Type"].partition(";")[0], (await request.body()).decode()
        self.posted.append((kind, json.loads(body) if kind == JSON else dict(parse_qsl(body))))
        if self.hang:
            await request.receive()  # until the sender disconnects
        status = self.statuses.pop(0) if self.statuses else 200
        return RedirectResponse("/followed", status) if status == 307 else Response(status_code=status)

    async def follow(self, _: Request) -> Response:
        self.followed += 1
        return Response()

    @property
    def phones(self) -> list[str]:
        return [body["phone"] for _, body in self.posted]

    async def expect(self, count: int) -> None:
        await until(lambda: len(self.posted) >= count)
        assert len(self.posted) == count


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    listener = Listener()
    routes = [
        Route("/hook", listener.hook, methods=["POST"]),
        Route("/followed", listener.follow, methods=["GET", "POST"]),
    ]
    async with SandboxServer(Starlette(routes=routes)) as server:
        listener.url = f"{server.url}/hook"
        yield listener


@dataclass(frozen=True)
class Sandbox:
    network: VirtualNetwork
    http: httpx.AsyncClient

    async def ask(self, hook_url: str, phone: str = PHONE) -> dict[str, str]:
        answer = await self.http.post(CALL_TO_AUTH, json={"phone": f"8{phone[2:]}", "hook_url": hook_url})
        assert answer.status_code == 200
        data: dict[str, str] = answer.json()["data"]
        return data


@contextlib.asynccontextmanager
async def sandbox_of(network: VirtualNetwork) -> AsyncIterator[Sandbox]:
    app = create_sandbox_app(network, user_id="0", access_token="calls")
    async with SandboxServer(app) as server, httpx.AsyncClient(base_url=server.url, headers=HEADERS) as http:
        yield Sandbox(network, http)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with sandbox_of(VirtualNetwork(pace=0.01)) as sandbox:
        yield sandbox


async def test_callbacks_announce_the_number_to_dial_and_then_confirm_the_caller(
    sandbox: Sandbox, listener: Listener
) -> None:
    asked = await sandbox.ask(listener.url)
    await listener.expect(1)
    assert listener.posted == [(JSON, {"key": asked["key"], "phone": asked["phone"]})]
    sandbox.network.dial(phone=PHONE, number=asked["phone"])
    await listener.expect(2)
    assert listener.posted[1] == (JSON, {"key": asked["key"], "phone": "89001234567"})


async def test_every_second_reverse_call_posts_form_fields(sandbox: Sandbox, listener: Listener) -> None:
    for number in range(4):
        asked = await sandbox.ask(listener.url, f"+7900123456{number}")
        await listener.expect(2 * number + 1)
        sandbox.network.dial(phone=f"+7900123456{number}", number=asked["phone"])
        await listener.expect(2 * number + 2)
        assert listener.posted[-1][1] == {"key": asked["key"], "phone": f"8900123456{number}"}
    assert [kind for kind, _ in listener.posted] == [JSON, JSON, FORM, FORM] * 2


async def test_a_magic_number_always_posts_form_fields(sandbox: Sandbox, listener: Listener) -> None:
    asked = [await sandbox.ask(listener.url, MagicNumber.CALLBACK_AS_FORM) for _ in range(2)]
    await listener.expect(2)
    assert sorted(body["key"] for _, body in listener.posted) == sorted(data["key"] for data in asked)
    assert {kind for kind, _ in listener.posted} == {FORM}


async def test_a_magic_number_posts_every_callback_twice(sandbox: Sandbox, listener: Listener) -> None:
    asked = await sandbox.ask(listener.url, MagicNumber.CALLBACK_TWICE)
    await listener.expect(2)
    sandbox.network.dial(phone=MagicNumber.CALLBACK_TWICE, number=asked["phone"])
    await listener.expect(4)
    assert listener.phones == [asked["phone"]] * 2 + ["89000000012"] * 2


async def test_a_magic_number_confirms_with_another_caller(sandbox: Sandbox, listener: Listener) -> None:
    asked = await sandbox.ask(listener.url, MagicNumber.CALLBACK_OF_ANOTHER)
    await listener.expect(1)
    sandbox.network.dial(phone=MagicNumber.CALLBACK_OF_ANOTHER, number=asked["phone"])
    await listener.expect(2)
    assert listener.phones == [asked["phone"], "89000000014"]


@pytest.mark.parametrize("statuses", [[500], [404, 503], [307, 307]], ids=str)
async def test_a_callback_without_a_2xx_response_is_retried(
    sandbox: Sandbox, listener: Listener, statuses: list[int]
) -> None:
    listener.statuses = [*statuses]
    await sandbox.ask(listener.url)
    await listener.expect(len(statuses) + 1)
    assert len({body["key"] for _, body in listener.posted}) == 1
    assert listener.followed == 0


async def test_a_callback_is_dropped_after_three_attempts(
    sandbox: Sandbox, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    listener.statuses = [500] * 10
    await sandbox.ask(listener.url)
    await until(lambda: "sandbox.callback_dropped" in caplog.messages)
    assert len(listener.posted) == 3
    assert [record.levelno for record in caplog.records if record.levelno > logging.WARNING] == []


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "https://127.0.0.1:9"])
async def test_a_call_is_placed_although_its_callback_cannot_be_delivered(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    asked = await sandbox.ask(f"{host}/made-up-secret")
    await until(lambda: "sandbox.callback_dropped" in caplog.messages)
    assert sandbox.network.dial(phone=PHONE, number=asked["phone"]).status == "completed"
    logged = [vars(record) for record in caplog.records if record.name == "app.sandbox.provider_callbacks"]
    assert logged
    assert "made-up-secret" not in str(logged)
    assert "1234567" not in str(logged)


async def test_a_callback_that_times_out_is_dropped_after_three_attempts(
    listener: Listener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener.hang = True
    monkeypatch.setattr(provider_callbacks, "_TIMEOUT", 0.05)
    async with open_callback_sender(pause=0.0) as send:
        send(ProviderCallback(url=listener.url, body={"key": "made-up", "phone": "88005550100"}, as_form=False))
        await until(lambda: "sandbox.callback_dropped" in caplog.messages)
    assert len(listener.posted) == 3


async def test_stopping_the_sandbox_cancels_pending_callbacks_at_once(listener: Listener) -> None:
    listener.hang = True
    tasks = asyncio.all_tasks()
    async with asyncio.timeout(PATIENCE), sandbox_of(VirtualNetwork(pace=3600.0)) as sandbox:
        for _ in range(3):
            await sandbox.ask(listener.url)
        await sandbox.ask("http://127.0.0.1:9/")  # the retry is an hour later
        await listener.expect(3)
    await until(lambda: asyncio.all_tasks() == tasks)  # the listener's tasks end when their clients disconnect


async def test_a_failing_lifespan_is_raised_and_no_task_is_left() -> None:
    def fail(_: Starlette) -> contextlib.AbstractAsyncContextManager[None]:
        raise OSError("no room")

    tasks = asyncio.all_tasks()
    with pytest.raises(OSError, match="no room"):
        await SandboxServer(Starlette(lifespan=fail)).__aenter__()
    assert asyncio.all_tasks() == tasks
