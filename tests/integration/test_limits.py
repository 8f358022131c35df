"""Rate limits are exact under concurrent requests: the tests count the calls in the virtual telephone network."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta

import httpx
import pytest
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from tests.ageing import age
from tests.integration.conftest import run, sandbox_settings
from tests.integration.test_verification import check, start

HUNDRED = range(100)
Fields = dict[str, str]


def phone_in_own_range(number: int) -> str:
    """Return a phone number that shares its range with no other."""
    return f"+7921{number:03}0000"


async def start_concurrently(api: httpx.AsyncClient, bodies: Sequence[Fields]) -> list[httpx.Response]:
    return await asyncio.gather(*(api.post("/verify/start", json=body) for body in bodies))


def placed(network: VirtualNetwork, bodies: Sequence[Fields]) -> int:
    return sum(len(network.calls_of(phone)) for phone in {body["phone"] for body in bodies})


PURPOSES = [f"purpose_{number}" for number in HUNDRED]

LIMITS: dict[str, tuple[dict[str, object], Callable[[int], Fields], int]] = {
    "calls_per_phone_hour": (
        {
            "limit": {"calls_per_phone_hour": 7, "calls_per_phone_day": 50, "calls_per_range": 100},
            "call": {"cooldowns_seconds": "0"},
        },
        lambda number: {"phone": "+79001234567", "purpose": PURPOSES[number]},
        7,
    ),
    "calls_per_phone_day": (
        {
            "limit": {"calls_per_phone_hour": 50, "calls_per_phone_day": 9, "calls_per_range": 100},
            "call": {"cooldowns_seconds": "0"},
        },
        lambda number: {"phone": "+79001234567", "purpose": PURPOSES[number]},
        9,
    ),
    "calls_per_address": (
        {},
        lambda number: {"phone": phone_in_own_range(number), "client_ip": "192.0.2.1"},
        10,
    ),
    "calls_per_range": (
        {},
        lambda number: {"phone": f"+79001234{number:03}"},
        30,
    ),
    "calls_per_client": (
        {"limit": {"calls_per_client": 20}},
        lambda number: {"phone": phone_in_own_range(number)},
        20,
    ),
    "calls_per_day": (
        {"limit": {"calls_per_day": 40}},
        lambda number: {"phone": phone_in_own_range(number)},
        40,
    ),
}


@pytest.mark.parametrize("name", LIMITS)
async def test_a_hundred_concurrent_starts_place_exactly_the_allowed_calls(
    redis: Redis, redis_url: str, network: VirtualNetwork, name: str
) -> None:
    overrides, body, allowed = LIMITS[name]
    bodies = [body(number) for number in HUNDRED]
    settings = sandbox_settings(redis_url, purposes=["phone_verification", *PURPOSES], **overrides)
    async with run(create_app(settings, network)) as api:
        answers = await start_concurrently(api, bodies)

        assert placed(network, bodies) == allowed
        refused = [answer for answer in answers if answer.status_code != 201]
        assert len(refused) == 100 - allowed
        for answer in refused:
            problem = answer.json()
            if name == "calls_per_day":
                assert (answer.status_code, problem["type"]) == (503, "/problems/call-budget-exhausted")
            else:
                assert (answer.status_code, problem["limit"]) == (429, name)
            assert answer.headers["Retry-After"] == str(problem["retry_after"])
            assert answer.headers["RateLimit"] == f'"{name}";r=0;t={problem["retry_after"]}'
        again = await start_concurrently(api, bodies[:1])
        assert again[0].status_code != 201


async def test_a_hundred_concurrent_starts_place_one_call_within_the_cooldown(
    api: httpx.AsyncClient, network: VirtualNetwork
) -> None:
    bodies = [{"phone": "+79001234567"}] * 100
    await start_concurrently(api, bodies)

    assert placed(network, bodies) == 1


async def test_a_hundred_concurrent_resends_give_a_verification_three_calls(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    settings = sandbox_settings(redis_url, call={"cooldowns_seconds": "0"})
    async with run(create_app(settings, network)) as api:
        (first,) = await start_concurrently(api, [{"phone": "+79001234567"}])
        again = {"phone": "+79001234567", "verification_id": first.json()["verification_id"]}
        answers = [answer for _ in range(4) for answer in await start_concurrently(api, [again] * 25)]

        assert len(network.calls_of("+79001234567")) == 3
        placed_calls = [answer.json() for answer in answers if answer.status_code == 201]
        assert {call["verification_id"] for call in placed_calls} == {again["verification_id"]}
        # One of the concurrent resends was first; the others get the cooldown and, later, the limit of calls.
        assert {answer.json().get("type") for answer in answers[:50]} >= {"/problems/call-cooldown"}
        assert {answer.json().get("limit") for answer in answers[50:]} == {"calls_per_verification"}


async def test_a_limit_counts_the_phone_whatever_its_spelling(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    spellings = ["+79001234567", "8 (900) 123-45-67", "79001234567", "9001234567"]
    settings = sandbox_settings(redis_url, call={"cooldowns_seconds": "0"}, limit={"calls_per_phone_hour": 2})
    async with run(create_app(settings, network)) as api:
        answers = await start_concurrently(api, [{"phone": spelling} for spelling in spellings])

        assert sorted(answer.status_code for answer in answers) == [201, 201, 429, 429]


@pytest.mark.parametrize(
    ("addresses", "allowed"),
    [
        ([f"2001:db8:0:1::{number:x}" for number in HUNDRED], 10),
        ([f"2001:db8:0:{number:x}::1" for number in HUNDRED], 100),
        (["192.0.2.1"] * 50 + ["::ffff:192.0.2.1"] * 50, 10),
        ([f"192.0.2.1:{number}" for number in HUNDRED], 10),
        ([f"[2001:db8::{number:x}]:443" for number in HUNDRED], 10),
        ([f"192.0.2.1, 10.0.0.{number}" for number in HUNDRED], 10),
        ([f"64:ff9b::192.0.2.{number}" for number in HUNDRED], 100),
        (["127.0.0.1"] * 50 + ["10.0.0.1"] * 50, 100),
        (["::1"] * 25 + ["::"] * 25 + ["fe80::1%eth0"] * 25 + ["unknown"] * 25, 100),
    ],
    ids=[
        "one /64",
        "many /64",
        "IPv4-mapped",
        "ports",
        "brackets",
        "proxy chain",
        "NAT64",
        "not public",
        "not public IPv6",
    ],
)
async def test_the_address_limit_counts_each_end_user_once_and_separately(
    api: httpx.AsyncClient, network: VirtualNetwork, addresses: list[str], allowed: int
) -> None:
    bodies = [
        {"phone": phone_in_own_range(number), "client_ip": address}
        for number, address in zip(HUNDRED, addresses, strict=True)
    ]
    await start_concurrently(api, bodies)

    assert placed(network, bodies) == allowed


async def test_refused_calls_count_against_no_limit(redis: Redis, redis_url: str, network: VirtualNetwork) -> None:
    limit = {"calls_per_phone_hour": 1, "calls_per_address": 1, "calls_per_range": 1, "calls_per_day": 1}
    async with run(create_app(sandbox_settings(redis_url, limit=limit), network)) as api:
        for _ in range(5):
            refused = await start(api, MagicNumber.REFUSED, client_ip="192.0.2.1")
            assert refused.status_code == 502

        placed_call = await start(api, "+79000000100", client_ip="192.0.2.1")
        assert placed_call.status_code == 201
        assert (await redis.keys("pv3*:p:*")) != []


async def test_failed_checks_of_a_phone_are_limited_across_resends_and_verifications(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    settings = sandbox_settings(redis_url, limit={"failed_checks_per_phone": 12}, check={"limit": 5})
    evaluated = 0
    async with run(create_app(settings, network)) as api:
        for _ in range(4):
            started = await start(api)
            if started.status_code != 201:
                assert started.json()["limit"] == "failed_checks_per_phone"
                break
            guesses = [check(api, started.json()["verification_id"], f"{guess:06}") for guess in HUNDRED]
            answers = await asyncio.gather(*guesses)
            evaluated += sum(answer.status_code == 200 for answer in answers)
            await age(redis, timedelta(minutes=10))

    assert evaluated == 12


@pytest.mark.parametrize("per", ["address", "client"])
async def test_failed_checks_of_an_address_or_client_are_limited_under_concurrency(
    redis: Redis, redis_url: str, network: VirtualNetwork, per: str
) -> None:
    settings = sandbox_settings(redis_url, limit={f"failed_checks_per_{per}": 17})
    async with run(create_app(settings, network)) as api:
        started = await start_concurrently(api, [{"phone": phone_in_own_range(number)} for number in HUNDRED])
        ids = [answer.json()["verification_id"] for answer in started]
        guesses = [
            api.post("/verify/check", json={"verification_id": name, "code": "000000", "client_ip": "192.0.2.1"})
            for name in ids
        ]
        answers = await asyncio.gather(*guesses)

        assert sum(answer.status_code == 200 for answer in answers) == 17
        refused = [answer.json() for answer in answers if answer.status_code == 429]
        assert {problem["limit"] for problem in refused} == {f"failed_checks_per_{per}"}


async def test_the_headers_show_each_limit_and_what_remains(api: httpx.AsyncClient) -> None:
    started = await start(api, client_ip="192.0.2.1")
    checked = await check(api, started.json()["verification_id"], "000000")

    assert '"calls_per_phone_hour";q=5;w=3600' in started.headers["RateLimit-Policy"]
    assert '"calls_per_phone_hour";r=4' in started.headers["RateLimit"]
    assert '"calls_per_address";r=9' in started.headers["RateLimit"]
    assert '"failed_checks_per_phone";q=50;w=86400' in checked.headers["RateLimit-Policy"]
    assert '"failed_checks_per_phone";r=49' in checked.headers["RateLimit"]


async def test_a_test_number_is_marked_and_has_no_call_limits(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    phone = "+79000000099"
    limit = {"calls_per_phone_hour": 1, "calls_per_range": 1, "calls_per_day": 1, "failed_checks_per_phone": 1}
    settings = sandbox_settings(redis_url, test_numbers=f"{phone}=1234", limit=limit)
    async with run(create_app(settings, network)) as api:
        for _ in range(5):
            started = (await start(api, phone)).json()
            assert (started["test"], started["code_length"]) == (True, 4)
            await check(api, started["verification_id"], "0000")
            checked = (await check(api, started["verification_id"], "1234")).json()
            assert (checked["verified"], checked["test"]) == (True, True)
            proof = {"token": checked["token"], "purpose": "phone_verification"}
            assert (await api.post("/verify/token/redeem", json=proof)).json()["test"] is True
        again = {"Idempotency-Key": "test-1"}
        await api.post("/verify/start", json={"phone": phone}, headers=again)
        (kept,) = await redis.keys("pv3{i:*")
        assert await redis.ttl(kept) <= 300  # without limits, kept responses must not pile up for a day
        ordinary = await start(api, "+79000000100")
        assert ordinary.status_code == 201
        assert "test" not in ordinary.json()

    assert network.calls_of(phone) == []


async def test_a_client_has_its_own_limits_and_purposes(redis: Redis, redis_url: str, network: VirtualNetwork) -> None:
    own = {"sandbox": {"purposes": ["login"], "calls_per_minute": 3, "calls_per_day": 5}}
    async with run(create_app(sandbox_settings(redis_url, clients=own), network)) as api:
        forbidden = await start(api, phone_in_own_range(0))
        assert (forbidden.status_code, forbidden.json()["errors"][0]["pointer"]) == (422, "#/purpose")

        bodies = [{"phone": phone_in_own_range(number), "purpose": "login"} for number in HUNDRED]
        first = await start_concurrently(api, bodies)
        assert placed(network, bodies) == 3
        assert {answer.json()["limit"] for answer in first if answer.status_code == 429} == {"calls_per_client"}

        await age(redis, timedelta(minutes=1))
        second = await start_concurrently(api, bodies[3:])
        assert placed(network, bodies) == 5
        assert "calls_per_client_day" in {answer.json()["limit"] for answer in second if answer.status_code == 429}
