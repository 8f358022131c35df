"""The sandbox's own HTTP API: a phone's calls, dialling, the account and fault injection."""

from collections.abc import AsyncIterator
from decimal import Decimal

import httpx
import pytest
from fastapi import FastAPI

from app.api.problems import install_problems
from app.api.routing import RequestMiddleware
from app.sandbox.faults import Fault, Faults
from app.sandbox.network import VirtualNetwork
from app.sandbox.routes import sandbox_router

PHONE = "+79001234567"
HOOK_URL = "http://127.0.0.1:9/hook"


@pytest.fixture
def network() -> VirtualNetwork:
    return VirtualNetwork(pace=0.0)


@pytest.fixture
async def person(network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    install_problems(app)
    app.include_router(sandbox_router(network))
    transport = httpx.ASGITransport(app=RequestMiddleware(app, (), {}))
    headers = {"X-Request-ID": "5f0c7a1e9b2d4c68"}
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox/sandbox", headers=headers) as client:
        yield client


# --- phones ---------------------------------------------------------------------------------------------------------


async def test_a_phone_shows_the_code_and_the_calling_number_of_a_flash_call(
    person: httpx.AsyncClient, network: VirtualNetwork
) -> None:
    network.place_flash_call(phone=PHONE, pin="0123")
    (call,) = (await person.get(f"/phones/{PHONE}/calls")).json()["calls"]
    shown = {name: call[name] for name in ("channel", "status", "heard", "caller", "dial", "lang", "repeat")}
    assert shown == {
        "channel": "flash_call",
        "status": "completed",
        "heard": "0123",
        "caller": "+74950000123",
        "dial": None,
        "lang": None,
        "repeat": None,
    }


async def test_the_inbox_has_the_calls_to_all_phones_newest_first(
    person: httpx.AsyncClient, network: VirtualNetwork
) -> None:
    for last in range(3):
        network.place_flash_call(phone=f"+7900123450{last}", pin="0123")

    every = (await person.get("/calls")).json()["calls"]
    latest = (await person.get("/calls?limit=2")).json()["calls"]

    assert [call["phone"] for call in every] == ["+79001234502", "+79001234501", "+79001234500"]
    assert {call["heard"] for call in every} == {"0123"}
    assert latest == every[:2]
    assert (await person.get("/calls?limit=1001")).status_code == 422


async def test_a_phone_shows_the_number_to_dial_until_it_is_dialled(
    person: httpx.AsyncClient, network: VirtualNetwork
) -> None:
    number = network.place_reverse_call(phone=PHONE, callback_url=HOOK_URL).dial
    (call,) = (await person.get(f"/phones/{PHONE}/calls")).json()["calls"]
    assert (call["channel"], call["status"], call["dial"]) == ("reverse_call", "queued", number)
    dialled = await person.post(f"/phones/{PHONE}/dial", json={"number": number})
    assert dialled.status_code == 200
    assert (dialled.json()["call_id"], dialled.json()["status"], dialled.json()["dial"]) == (
        call["call_id"],
        "completed",
        None,
    )
    assert (await person.get(f"/phones/{PHONE}/calls")).json()["calls"] == [dialled.json()]


async def test_a_wrong_number_and_a_phone_without_a_waiting_call_are_problems(
    person: httpx.AsyncClient, network: VirtualNetwork
) -> None:
    for status in (404, 409):
        answer = await person.post(f"/phones/{PHONE}/dial", json={"number": "88005559999"})
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
        assert answer.json().keys() == {"type", "title", "status", "detail", "instance"}
        assert answer.json()["status"] == status
        network.place_reverse_call(phone=PHONE, callback_url=HOOK_URL)


@pytest.mark.parametrize("body", [{}, {"number": ""}, {"number": "abc"}, {"number": 88005550100}, {"dial": "8"}])
async def test_anything_but_a_number_to_dial_is_rejected(person: httpx.AsyncClient, body: dict[str, object]) -> None:
    assert (await person.post(f"/phones/{PHONE}/dial", json=body)).status_code == 422


# --- account --------------------------------------------------------------------------------------------------------


async def test_the_balance_is_shown_and_can_be_set(person: httpx.AsyncClient, network: VirtualNetwork) -> None:
    assert (await person.get("/account")).json() == {"balance": 10000.0, "price": 3.0}
    answer = await person.put("/account", json={"balance": 5.1})
    assert (answer.status_code, answer.json()) == (200, {"balance": 5.1, "price": 3.0})
    assert network.balance == Decimal("5.1")
    network.place_flash_call(phone=PHONE)
    assert (await person.get("/account")).json()["balance"] == 2.1


@pytest.mark.parametrize("body", ['{"balance": -1}', '{"balance": "much"}', '{"balance": 1e9}', "{}"])
async def test_an_invalid_balance_is_rejected(person: httpx.AsyncClient, network: VirtualNetwork, body: str) -> None:
    answer = await person.put("/account", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert network.balance == 10_000


# --- faults ---------------------------------------------------------------------------------------------------------


async def test_the_share_of_faults_is_shown_and_can_be_set(person: httpx.AsyncClient, network: VirtualNetwork) -> None:
    assert (await person.get("/faults")).json() == {"share": 0.0, "kinds": list(Fault), "met": {}}
    answer = await person.put("/faults", json={"share": 0.3})
    assert (answer.status_code, answer.json()) == (200, {"share": 0.3, "kinds": list(Fault), "met": {}})
    assert network.faults.share == 0.3


async def test_injected_faults_are_counted_by_kind(person: httpx.AsyncClient, network: VirtualNetwork) -> None:
    await person.put("/faults", json={"share": 1, "kinds": ["refused"], "seed": 1})
    network.faults.draw()
    network.faults.draw()
    assert (await person.get("/faults")).json() == {"share": 1.0, "kinds": ["refused"], "met": {"refused": 2}}


async def test_the_seed_determines_the_faults(person: httpx.AsyncClient, network: VirtualNetwork) -> None:
    await person.put("/faults", json={"share": 0.5, "seed": 7})
    same = Faults(share=0.5, seed=7)
    assert [network.faults.draw() for _ in range(20)] == [same.draw() for _ in range(20)]


@pytest.mark.parametrize(
    "body", [{"share": 1.1}, {"share": -0.1}, {}, {"share": 1, "kinds": []}, {"share": 0, "odd": 1}]
)
async def test_invalid_fault_settings_are_rejected(
    person: httpx.AsyncClient, network: VirtualNetwork, body: dict[str, object]
) -> None:
    assert (await person.put("/faults", json=body)).status_code == 422
    assert network.faults.share == 0
