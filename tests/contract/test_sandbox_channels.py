"""Flash calls, reverse calls and faults of the sandbox over real HTTP."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.types import ASGIApp, Receive, Scope, Send

from app.sandbox.faults import Fault, Faults
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.sandbox.plusofon_api import create_sandbox_app
from app.sandbox.server import SandboxServer
from app.verification.channels import Channel
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server serves this file

SEND = "/api/v1/flash-call/send"
CALL = "/api/v1/flash-call/call"
CALL_TO_AUTH = "/api/v1/flash-call/call-to-auth"
STATUS = "/api/v1/flash-call/status"
NOWHERE = "http://127.0.0.1:9/hook"
PHONE = "+79001234567"
STALL = 0.2
HEADERS = {"Client": "0", "Authorization": "Bearer calls"}

BODIES: dict[str, dict[str, object]] = {
    CALL: {"pin": "123456", "lang": "ru", "repeat": 2},
    SEND: {"pin": "0123"},
    CALL_TO_AUTH: {"hook_url": NOWHERE},
}


@dataclass(frozen=True)
class Sandbox:
    network: VirtualNetwork
    http: httpx.AsyncClient

    async def post(self, path: str, **body: object) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def place(self, path: str, phone: str = PHONE, **changes: object) -> httpx.Response:
        return await self.post(path, **{"phone": phone.replace("+7", "8"), **BODIES[path], **changes})


class ReplaceableApp:
    """An app that can be replaced for each test behind one server, because stopping a server takes time."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[tuple[ReplaceableApp, httpx.AsyncClient]]:
    outer = ReplaceableApp()
    async with SandboxServer(outer) as server, httpx.AsyncClient(base_url=server.url, headers=HEADERS) as http:
        yield outer, http


@pytest.fixture
def sandbox(served: tuple[ReplaceableApp, httpx.AsyncClient]) -> Sandbox:
    outer, http = served
    network = VirtualNetwork(pace=0.0)
    outer.app = create_sandbox_app(network, user_id="0", access_token="calls", cabinet_token="cabinet", stall=STALL)
    return Sandbox(network, http)


# --- flash calls ----------------------------------------------------------------------------------------------------


async def test_a_flash_call_is_placed_and_its_code_heard(sandbox: Sandbox) -> None:
    answer = await sandbox.place(SEND)
    assert answer.status_code == 200
    key = answer.json()["data"]["key"]
    assert answer.json() == {"success": True, "data": {"key": key}}
    (call,) = sandbox.network.calls_of(PHONE)
    assert (call.call_id, call.channel, call.heard, call.caller) == (key, "flash_call", "0123", "+74950000123")


async def test_a_code_is_generated_for_a_flash_call_without_one(sandbox: Sandbox) -> None:
    key = (await sandbox.post(SEND, phone="89001234567")).json()["data"]["key"]
    (call,) = sandbox.network.calls_of(PHONE)
    assert call.call_id == key
    assert re.fullmatch("[0-9]{4}", call.heard or "")


async def test_a_code_in_the_response_overrides_the_requested_one(sandbox: Sandbox) -> None:
    data = (await sandbox.place(SEND, MagicNumber.OTHER_PIN)).json()["data"]
    (call,) = sandbox.network.calls_of(MagicNumber.OTHER_PIN)
    assert data == {"key": call.call_id, "pin": call.heard, "operator": "t2"}
    assert call.heard != "0123"


async def test_code_and_operator_are_returned_only_by_an_account_configured_to(sandbox: Sandbox) -> None:
    hidden = (await sandbox.place(SEND, "+79101234567")).json()["data"]
    assert list(hidden) == ["key"]

    network = VirtualNetwork(returns_pin=True)
    app = create_sandbox_app(network, user_id="0", access_token="calls")
    async with SandboxServer(app) as server, httpx.AsyncClient(base_url=server.url, headers=HEADERS) as http:
        data = (await http.post(SEND, json={"phone": "79101234567", "pin": "0123"})).json()["data"]
    (call,) = network.calls_of("+79101234567")
    assert data == {"key": call.call_id, "pin": "0123", "operator": "mts"}


async def test_a_flash_call_to_mts_is_placed_and_never_arrives(sandbox: Sandbox) -> None:
    assert (await sandbox.place(SEND, "+79151234567")).json()["success"] is True
    (call,) = sandbox.network.calls_of("+79151234567")
    assert (call.status, call.heard, call.caller) == ("no_answer", None, None)


# --- invalid requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (SEND, {"pin": "123"}),
        (SEND, {"pin": "12345"}),
        (SEND, {"pin": 1234}),
        (SEND, {"phone": "59001234567"}),
        (CALL_TO_AUTH, {"phone": "9001234567"}),
        (CALL_TO_AUTH, {"hook_url": None}),
        (CALL_TO_AUTH, {"hook_url": ""}),
        (CALL_TO_AUTH, {"hook_url": "/hook"}),
        (CALL_TO_AUTH, {"hook_url": "ftp://127.0.0.1/hook"}),
        (CALL_TO_AUTH, {"hook_url": "file:///etc/hosts"}),
        (CALL_TO_AUTH, {"hook_url": "http://"}),
        (CALL_TO_AUTH, {"hook_url": "http://127.0.0.1:0/"}),
        (CALL_TO_AUTH, {"hook_url": "http://127.0.0.1:x/"}),
        (CALL_TO_AUTH, {"hook_url": "http://[1/"}),
    ],
)
async def test_an_invalid_parameter_is_a_400_with_its_name(
    sandbox: Sandbox, path: str, changes: dict[str, Any]
) -> None:
    answer = await sandbox.place(path, **changes)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    assert answer.json()["message"].startswith(f"{next(iter(changes))}: ")
    assert sandbox.network.calls_of(PHONE) == []


@pytest.mark.parametrize("path", [SEND, CALL_TO_AUTH])
@pytest.mark.parametrize(("token", "status"), [("cabinet", 403), ("wrong", 401)])
async def test_only_the_access_token_may_place_calls(sandbox: Sandbox, path: str, token: str, status: int) -> None:
    answer = await sandbox.http.post(path, headers={"Authorization": f"Bearer {token}"}, json={})
    assert answer.status_code == status


async def test_status_lookups_work_only_for_voice_calls(sandbox: Sandbox) -> None:
    flash = (await sandbox.place(SEND)).json()["data"]["key"]
    reverse = (await sandbox.place(CALL_TO_AUTH)).json()["data"]["key"]
    unknown = {"success": False, "code": 500, "message": "error find call: not found"}
    for key in (flash, reverse, "0" * 32):
        assert (await sandbox.post(STATUS, call_id=key)).json() == unknown


@pytest.mark.parametrize("path", [SEND, CALL_TO_AUTH])
async def test_refusals_have_the_same_form_on_every_channel(sandbox: Sandbox, path: str) -> None:
    refused = await sandbox.place(path, MagicNumber.REFUSED)
    assert (refused.status_code, refused.json()["success"]) == (200, False)
    assert (await sandbox.place(path, MagicNumber.NO_BALANCE)).json()["message"] == "Недостаточно средств на балансе"
    no_access = await sandbox.place(path, MagicNumber.NO_ACCESS)
    assert (no_access.status_code, no_access.text) == (500, "no access")
    assert (await sandbox.place(path, MagicNumber.NO_REPLY_PLACED)).status_code == 504
    assert (await sandbox.place(path, MagicNumber.NO_REPLY_NOT_PLACED)).status_code == 504


async def test_a_number_that_refuses_voice_calls_accepts_other_channels(sandbox: Sandbox) -> None:
    assert (await sandbox.place(CALL, MagicNumber.VOICE_REFUSED)).json()["success"] is False
    assert (await sandbox.place(SEND, MagicNumber.VOICE_REFUSED)).json()["success"] is True
    assert (await sandbox.place(CALL_TO_AUTH, MagicNumber.VOICE_REFUSED)).json()["success"] is True


# --- injected faults ------------------------------------------------------------------------------------------------

ANSWERED: dict[Fault, Callable[[httpx.Response], bool]] = {
    Fault.REFUSED: lambda answer: answer.status_code == 200 and answer.json()["success"] is False,
    Fault.TOO_MANY_REQUESTS: lambda answer: answer.status_code == 429 and answer.headers["Retry-After"] == "1",
    Fault.SERVER_ERROR: lambda answer: answer.status_code == 500 and "<h1>" in answer.text,
    Fault.BAD_GATEWAY: lambda answer: answer.status_code == 502 and answer.content == b"",
    Fault.DELAYED: lambda answer: answer.json()["success"] is True and answer.elapsed.total_seconds() >= 0.05,
    Fault.STALLED: lambda answer: answer.status_code == 504 and answer.elapsed.total_seconds() >= 0.1,
    Fault.MALFORMED: lambda answer: answer.status_code == 200 and not is_json(answer),
}


def is_json(answer: httpx.Response) -> bool:
    try:
        answer.json()
    except ValueError:
        return False
    return True


def only(fault: Fault) -> Faults:
    return Faults(share=1, kinds=(fault,), delay=0.05)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("fault", ANSWERED)
async def test_a_fault_has_its_response_and_places_the_call_or_not(sandbox: Sandbox, path: str, fault: Fault) -> None:
    sandbox.network.faults = only(fault)
    assert ANSWERED[fault](await sandbox.place(path))
    assert len(sandbox.network.calls_of(PHONE)) == fault.placed


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("fault", [Fault.CLOSED_BEFORE, Fault.CLOSED_AFTER])
async def test_a_fault_closes_the_connection_before_or_after_the_call_is_placed(
    sandbox: Sandbox, path: str, fault: Fault
) -> None:
    sandbox.network.faults = only(fault)
    with pytest.raises(httpx.RemoteProtocolError):
        await sandbox.place(path)
    assert len(sandbox.network.calls_of(PHONE)) == fault.placed


async def test_a_fault_closes_only_its_own_connection(sandbox: Sandbox) -> None:
    sandbox.network.faults = Faults(share=1, kinds=(Fault.DELAYED,), delay=0.2)
    waiting = asyncio.create_task(sandbox.place(CALL))
    await until(lambda: sandbox.network.calls_of(PHONE))
    sandbox.network.faults = only(Fault.CLOSED_BEFORE)
    with pytest.raises(httpx.RemoteProtocolError):
        await sandbox.place(CALL)
    assert (await waiting).json()["success"] is True


async def test_requests_that_place_no_call_have_no_faults(sandbox: Sandbox) -> None:
    call_id = (await sandbox.place(CALL)).json()["data"]["call_id"]
    sandbox.network.faults = Faults(share=1)
    assert (await sandbox.post(STATUS, call_id=call_id)).json()["success"] is True
    account = await sandbox.http.get("/api/v1/payment/balance", headers={"Authorization": "Bearer cabinet"})
    assert account.json() == {"balance": 9997.0}


async def test_calls_succeed_after_faults_are_switched_off(sandbox: Sandbox) -> None:
    sandbox.network.faults = only(Fault.REFUSED)
    await sandbox.place(CALL)
    sandbox.network.faults = Faults()
    assert (await sandbox.place(CALL)).json()["success"] is True


async def test_with_many_faults_every_placed_call_is_listed_and_paid_for(sandbox: Sandbox) -> None:
    sandbox.network.faults = Faults(share=0.5, seed=4, delay=0.01)
    phones = [f"+7900555{number:04}" for number in range(150)]

    async def place(phone: str, path: str) -> None:
        with contextlib.suppress(httpx.RemoteProtocolError):
            await sandbox.place(path, phone)

    await asyncio.gather(*(place(phone, list(BODIES)[number % 3]) for number, phone in enumerate(phones)))
    met = sandbox.network.faults.met
    refused = sum(count for fault, count in met.items() if not fault.placed)
    placed = [call for phone in phones for call in sandbox.network.calls_of(phone)]
    assert set(met) == set(Fault)
    assert len(placed) == len(phones) - refused
    assert sandbox.network.balance == 10_000 - 3 * len(placed)
    assert {call.channel for call in placed} == set(Channel)
