"""The sandbox over real HTTP: every route and error response of the provider, and a server that stops cleanly."""

import asyncio
import contextlib
import logging
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.applications import Starlette

from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.sandbox.plusofon_api import ACCOUNT_TOKEN, create_sandbox_app
from app.sandbox.routes import sandbox_router
from app.sandbox.server import SandboxServer
from app.verification.errors import PhoneNotCallable
from app.verification.model import Lang
from tests.waiting import PATIENCE, timing, until

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server serves this file; each test calls its own phone

CALL = "/api/v1/flash-call/call"
STATUS = "/api/v1/flash-call/status"
ACCOUNTS = "/api/v1/flash-call"
BALANCE = "/api/v1/payment/balance"
STALL = 0.2
ORDER = {"phone": "89001234567", "pin": "123456", "lang": "ru", "repeat": 2}


@dataclass(frozen=True)
class Sandbox:
    network: VirtualNetwork
    calls: httpx.AsyncClient
    account: httpx.AsyncClient

    async def place(self, **changes: object) -> httpx.Response:
        return await self.calls.post(CALL, json=ORDER | changes)


def headers(token: str, user_id: str = "10553") -> dict[str, str]:
    return {"Client": user_id, "Authorization": f"Bearer {token}"}


def sandbox_app(network: VirtualNetwork, *, cabinet_token: str | None = "cabinet", stall: float = STALL) -> Starlette:
    return create_sandbox_app(network, user_id="10553", access_token="calls", cabinet_token=cabinet_token, stall=stall)


def client_of(server: SandboxServer, token: str = "calls") -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, headers=headers(token))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    network = VirtualNetwork(pace=0.0)
    async with (
        SandboxServer(sandbox_app(network)) as server,
        client_of(server) as calls,
        client_of(server, "cabinet") as account,
    ):
        yield Sandbox(network, calls, account)


# --- placing a call -------------------------------------------------------------------------------------------------


async def test_a_call_is_placed_and_heard_and_has_a_status(sandbox: Sandbox) -> None:
    answer = await sandbox.place(phone="89001110001")
    assert answer.status_code == 200
    call_id = answer.json()["data"]["call_id"]
    assert answer.json() == {"success": True, "data": {"call_id": call_id}}
    assert re.fullmatch("[0-9a-f]{32}", call_id)
    (call,) = sandbox.network.calls_of("+79001110001")
    assert (call.call_id, call.heard, call.lang, call.repeat) == (call_id, "123456", "ru", 2)
    status = await sandbox.calls.post(STATUS, json={"call_id": call_id})
    assert status.status_code == 200
    assert status.json() == {"success": True, "data": {"status": "completed", "message": "call completed"}}


async def test_prefixes_7_and_8_call_the_same_phone(sandbox: Sandbox) -> None:
    for prefix in "78":
        await sandbox.place(phone=f"{prefix}9001110002")
    assert len(sandbox.network.calls_of("+79001110002")) == 2


@pytest.mark.parametrize("pin", ["1234", "12345", "000000"])
async def test_a_code_has_four_to_six_digits(sandbox: Sandbox, pin: str) -> None:
    assert (await sandbox.place(phone="89001110007", pin=pin)).json()["success"] is True


@pytest.mark.parametrize(
    "changes",
    [
        {"phone": "+79001110003"},
        {"phone": "9001110003"},
        {"phone": "890011100031"},
        {"phone": "59001110003"},
        {"phone": "8900111000٣"},
        {"phone": 89001110003},
        {"pin": "123"},
        {"pin": "1234567"},
        {"pin": "12a4"},
        {"pin": "1234\n"},
        {"pin": 1234},
        {"lang": "de"},
        {"lang": None},
        {"repeat": 0},
        {"repeat": 6},
        {"repeat": "2"},
        {"repeat": True},
    ],
    ids=str,
)
async def test_an_invalid_parameter_is_a_400_with_its_name(sandbox: Sandbox, changes: dict[str, Any]) -> None:
    spent = sandbox.network.balance
    answer = await sandbox.place(**changes)
    assert answer.status_code == 400
    assert answer.json()["success"] is False
    assert answer.json()["code"] == 400
    assert answer.json()["message"].startswith(f"{next(iter(changes))}: ")
    assert sandbox.network.balance == spent


@pytest.mark.parametrize("missing", ORDER)
async def test_every_parameter_of_a_call_is_required(sandbox: Sandbox, missing: str) -> None:
    answer = await sandbox.calls.post(CALL, json={name: value for name, value in ORDER.items() if name != missing})
    assert (answer.status_code, answer.json()["message"]) == (400, f"{missing}: Field required")


@pytest.mark.parametrize("path", [CALL, STATUS])
@pytest.mark.parametrize("body", ["", "{", "[]", '"text"', "phone=89001234567", "\ufeff{}"])
async def test_a_body_that_is_not_a_json_object_is_a_400(sandbox: Sandbox, path: str, body: str) -> None:
    answer = await sandbox.calls.post(path, content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    assert answer.json()["message"].startswith("body: ")


async def test_a_response_is_not_delayed_by_nagles_algorithm(sandbox: Sandbox) -> None:
    """With Nagle's algorithm on its connection every response would take 40 ms longer."""
    durations = [(await sandbox.calls.post(STATUS, json={"call_id": "0" * 32})).elapsed for _ in range(10)]
    assert min(durations) < timedelta(milliseconds=30)


# --- the magic numbers ----------------------------------------------------------------------------------------------


def local(number: MagicNumber) -> str:
    return number.replace("+7", "8")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (MagicNumber.REFUSED, "error find flashcall account: not found"),
        (MagicNumber.NO_BALANCE, "Недостаточно средств на балансе"),
    ],
)
async def test_a_refusal_is_status_200_with_success_false(sandbox: Sandbox, number: MagicNumber, message: str) -> None:
    answer = await sandbox.place(phone=local(number))
    assert answer.status_code == 200
    assert answer.json() == {"success": False, "code": 500, "message": message}


async def test_no_access_is_status_500_in_plain_text(sandbox: Sandbox) -> None:
    answer = await sandbox.place(phone=local(MagicNumber.NO_ACCESS))
    assert (answer.status_code, answer.text) == (500, "no access")
    assert sandbox.network.calls_of(MagicNumber.NO_ACCESS) == []


@pytest.mark.parametrize(
    ("number", "placed"), [(MagicNumber.NO_REPLY_PLACED, ["123456"]), (MagicNumber.NO_REPLY_NOT_PLACED, [])]
)
async def test_a_missing_reply_is_status_504_after_the_stall(
    sandbox: Sandbox, number: MagicNumber, placed: list[str]
) -> None:
    began = time.monotonic()
    answer = await sandbox.place(phone=local(number))
    assert time.monotonic() - began >= STALL
    assert answer.status_code == 504
    assert [call.heard for call in sandbox.network.calls_of(number)] == placed


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (MagicNumber.BUSY, "busy", "call busy"),
        (MagicNumber.NO_ANSWER, "no_answer", "call no answer"),
        (MagicNumber.FAILED, "failed", "call failed"),
        (MagicNumber.ODD_STATUS, "completed", "call completed"),
    ],
)
async def test_the_status_of_a_call_is_its_outcome(
    sandbox: Sandbox, number: MagicNumber, status: str, message: str
) -> None:
    placed = await sandbox.place(phone=local(number))
    answer = await sandbox.calls.post(STATUS, json=placed.json()["data"])
    assert answer.json() == {"success": True, "data": {"status": status, "message": message}}


# --- the other routes -----------------------------------------------------------------------------------------------


async def test_an_unknown_call_is_status_200_with_success_false(sandbox: Sandbox) -> None:
    answer = await sandbox.calls.post(STATUS, json={"call_id": "0" * 32})
    assert answer.status_code == 200
    assert answer.json() == {"success": False, "code": 500, "message": "error find call: not found"}


async def test_a_call_id_must_be_a_string(sandbox: Sandbox) -> None:
    answer = await sandbox.calls.post(STATUS, json={"call_id": 7})
    assert (answer.status_code, answer.json()["message"]) == (400, "call_id: Input should be a valid string")


async def test_accounts_include_a_token_as_the_provider_sends_it(sandbox: Sandbox) -> None:
    answer = await sandbox.account.get(ACCOUNTS)
    assert answer.status_code == 200
    assert answer.json() == {"success": True, "data": [{"id": 7, "name": "Sandbox", "access_token": ACCOUNT_TOKEN}]}


async def test_the_balance_is_a_plain_object_and_decreases_with_a_call(sandbox: Sandbox) -> None:
    before = (await sandbox.account.get(BALANCE)).json()
    assert before == {"balance": float(sandbox.network.balance)}
    await sandbox.place(phone="89001110004")
    assert (await sandbox.account.get(BALANCE)).json() == {"balance": before["balance"] - 3}


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/"), ("POST", "/api/v1/flash-call/cal"), ("POST", f"{CALL}/"), ("GET", CALL), ("POST", BALANCE)],
)
async def test_a_wrong_path_or_method_is_status_200_with_page_not_found(
    sandbox: Sandbox, method: str, path: str
) -> None:
    answer = await sandbox.calls.request(method, path)
    assert answer.status_code == 200
    assert answer.json() == {"jsonrpc": "2.0", "result": None, "error": {"code": 0, "message": "Page not found."}}


# --- authentication -------------------------------------------------------------------------------------------------

ROUTES = [("POST", CALL), ("POST", STATUS), ("GET", ACCOUNTS), ("GET", BALANCE)]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "changes",
    [{"Client": "10554"}, {"Client": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "calls"}],
    ids=str,
)
async def test_a_wrong_user_id_or_token_is_a_401(
    sandbox: Sandbox, method: str, path: str, changes: dict[str, str]
) -> None:
    answer = await sandbox.calls.request(method, path, headers=changes, json=ORDER)
    assert answer.status_code == 401
    assert answer.json() == {"success": False, "code": 401, "message": "Unauthenticated."}


@pytest.mark.parametrize("missing", ["Client", "Authorization"])
async def test_a_missing_header_is_a_401(sandbox: Sandbox, missing: str) -> None:
    shown = {name: value for name, value in headers("calls").items() if name != missing}
    async with httpx.AsyncClient(base_url=sandbox.calls.base_url, headers=shown) as client:
        assert (await client.post(CALL, json=ORDER)).status_code == 401


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_token_without_permission_is_a_403(sandbox: Sandbox, method: str, path: str) -> None:
    client = sandbox.account if method == "POST" else sandbox.calls
    answer = await client.request(method, path)
    assert answer.status_code == 403
    assert answer.json() == {"success": False, "code": 403, "message": "Недостаточно прав"}


async def test_without_a_cabinet_token_the_access_token_is_valid_for_every_route() -> None:
    app = sandbox_app(VirtualNetwork(), cabinet_token=None)
    async with SandboxServer(app) as server, client_of(server) as client:
        assert (await client.post(CALL, json=ORDER)).json()["success"] is True
        assert (await client.get(ACCOUNTS)).json()["success"] is True
        assert (await client.get(BALANCE)).json() == {"balance": 9997.0}


# --- the server -----------------------------------------------------------------------------------------------------


async def stop_server_during_a_request() -> float:
    """Return the seconds that stopping the server took."""
    network = VirtualNetwork()
    async with (
        httpx.AsyncClient(headers=headers("calls"), timeout=PATIENCE) as client,
        contextlib.AsyncExitStack() as running,
    ):
        server = await running.enter_async_context(SandboxServer(sandbox_app(network, stall=3600.0)))
        order = ORDER | {"phone": local(MagicNumber.NO_REPLY_PLACED)}
        hanging = asyncio.create_task(client.post(server.url + CALL, json=order))
        await until(lambda: network.calls_of(MagicNumber.NO_REPLY_PLACED))
        async with timing() as seconds:
            await running.aclose()
            took = seconds()
        with pytest.raises(httpx.RemoteProtocolError):
            await hanging
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return took


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
async def test_a_server_stops_at_once_during_a_request(
    loop: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    def stop() -> float:
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(stop_server_during_a_request())

    assert await asyncio.to_thread(stop) < 1.0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_request_ends_when_its_client_disconnects() -> None:
    tasks = asyncio.all_tasks()
    async with SandboxServer(sandbox_app(VirtualNetwork(), stall=3600.0)) as server, client_of(server) as client:
        serving = asyncio.all_tasks()
        with pytest.raises(httpx.ReadTimeout):
            await client.post(CALL, json=ORDER | {"phone": local(MagicNumber.NO_REPLY_NOT_PLACED)}, timeout=0.1)
        await until(lambda: asyncio.all_tasks() == serving)
    assert asyncio.all_tasks() == tasks


async def test_a_stopped_server_refuses_connections() -> None:
    async with SandboxServer(sandbox_app(VirtualNetwork())) as server:
        pass
    async with client_of(server) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(BALANCE)


async def test_a_server_that_cannot_start_raises_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def startup(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        raise OSError("no room")

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    with pytest.raises(OSError, match="no room"):
        await SandboxServer(sandbox_app(VirtualNetwork())).__aenter__()


async def test_two_servers_have_separate_ports_and_networks() -> None:
    rich, poor = VirtualNetwork(), VirtualNetwork(balance=Decimal(0))
    async with (
        SandboxServer(sandbox_app(rich)) as one,
        SandboxServer(sandbox_app(poor)) as two,
        client_of(one) as to_one,
        client_of(two) as to_two,
    ):
        assert one.url != two.url
        assert (await to_one.post(CALL, json=ORDER)).json()["success"] is True
        assert (await to_two.post(CALL, json=ORDER)).json()["success"] is False


async def test_a_server_installs_no_signal_handlers() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with SandboxServer(sandbox_app(VirtualNetwork())) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# --- the phones -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def phones_of(network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(sandbox_router(network))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://sandbox") as client:
        yield client


@pytest.mark.parametrize("spelling", ["+79001110005", "89001110005", "8 (900) 111-00-05"])
async def test_a_phone_lists_its_calls_in_any_spelling_of_the_number(spelling: str) -> None:
    network = VirtualNetwork(pace=0.0)
    calls = [network.place(phone="+79001110005", pin=pin, lang=Lang.EN, repeat=1) for pin in ("1111", "2222")]
    async with phones_of(network) as client:
        answer = await client.get(f"/sandbox/phones/{spelling}/calls")
    assert answer.status_code == 200
    assert answer.json() == {
        "calls": [
            {
                "call_id": call.call_id,
                "channel": "voice",
                "status": "completed",
                "heard": call.heard,
                "caller": None,
                "dial": None,
                "lang": "en",
                "repeat": 1,
                "placed_at": call.placed_at.isoformat().replace("+00:00", "Z"),
            }
            for call in calls
        ]
    }


async def test_a_code_is_not_shown_before_the_call_is_answered() -> None:
    network = VirtualNetwork(pace=60.0)
    network.place(phone="+79001110006", pin="1111", lang=Lang.RU, repeat=1)
    async with phones_of(network) as client:
        (call,) = (await client.get("/sandbox/phones/+79001110006/calls")).json()["calls"]
    assert (call["status"], call["heard"]) == ("queued", None)


async def test_a_phone_that_may_not_be_called_raises_phone_not_callable() -> None:
    async with phones_of(VirtualNetwork()) as client:
        with pytest.raises(PhoneNotCallable):
            await client.get("/sandbox/phones/88001234567/calls")


async def test_magic_numbers_are_listed_with_their_effects() -> None:
    async with phones_of(VirtualNetwork()) as client:
        answer = await client.get("/sandbox/magic-numbers")
    assert answer.json()["numbers"][0] == {
        "phone": "+79000000001",
        "effect": "The line is busy; the code is never heard.",
    }
    assert len(answer.json()["numbers"]) == 14
