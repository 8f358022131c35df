"""A verification through HTTP, Redis and the provider: a call is placed, the code is heard and checked."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from tests.ageing import age
from tests.integration.conftest import run, sandbox_settings
from tests.waiting import eventually

PHONE = "+79001234567"


async def start(api: httpx.AsyncClient, phone: str = PHONE, **fields: str) -> httpx.Response:
    return await api.post("/verify/start", json={"phone": phone, **fields})


async def check(api: httpx.AsyncClient, verification_id: str, code: str) -> httpx.Response:
    return await api.post("/verify/check", json={"verification_id": verification_id, "code": code})


async def hear(api: httpx.AsyncClient, phone: str = PHONE) -> str:
    """Wait for the phone to be answered, and return what it last heard."""

    async def last() -> str | None:
        calls = (await api.get(f"/sandbox/phones/{phone}/calls")).json()["calls"]
        return calls[-1]["heard"] if calls else None

    return str(await eventually(last))


async def own_keys(redis: Redis) -> list[str]:
    """Return the keys of verifications and phones, without the journal and those of shared counters."""
    keys = [key if isinstance(key, str) else key.decode() for key in await redis.keys()]
    return [key for key in keys if re.match(r"pv3\{[0-9a-f]{3}\}:(?!j$)", key)]


def wrong(code: str) -> str:
    return code[:-1] + str((int(code[-1]) + 1) % 10)


async def test_an_end_user_who_hears_the_code_is_verified(api: httpx.AsyncClient) -> None:
    started = await start(api, "8 (900) 123-45-67", purpose="password_reset", lang="en")
    assert started.status_code == 201
    body = started.json()
    assert started.headers["Location"] == f"/verify/{body['verification_id']}"
    created, expires = (datetime.fromisoformat(body.pop(name)) for name in ("created_at", "expires_at"))
    assert expires - created == timedelta(minutes=5)
    verification_id = body.pop("verification_id")
    assert verification_id.startswith("vrf_")
    assert body == {
        "status": "pending",
        "purpose": "password_reset",
        "channel": "voice",
        "phone": "+7900•••4567",
        "code_length": 6,
        "calls_placed": 1,
        "calls_left": 2,
        "checks_left": 5,
        "call": {"status": "initiated"},
        "expires_in": 300,
        "resend_in": 60,
    }

    code = await hear(api)
    checked = await check(api, verification_id, f"{code[:3]} {code[3:]}")

    assert checked.status_code == 200
    answer = checked.json()
    assert answer.pop("token").count(".") == 2
    assert answer == {
        "verified": True,
        "status": "verified",
        "verification_id": verification_id,
        "purpose": "password_reset",
        "phone": PHONE,
        "token_expires_in": 600,
    }
    again = await check(api, verification_id, code)
    assert (again.status_code, again.json()["type"]) == (409, "/problems/verification-already-used")


async def test_the_code_is_spoken_twice_in_the_requested_language(api: httpx.AsyncClient) -> None:
    await start(api, lang="en")
    await hear(api)

    (call,) = (await api.get(f"/sandbox/phones/{PHONE}/calls")).json()["calls"]

    assert (call["lang"], call["repeat"], len(call["heard"])) == ("en", 2, 6)


async def test_a_code_can_be_checked_by_phone_and_purpose(api: httpx.AsyncClient) -> None:
    started = (await start(api)).json()
    code = await hear(api)

    other = await api.post("/verify/check", json={"phone": PHONE, "purpose": "login", "code": code})
    checked = await api.post("/verify/check", json={"phone": "8 900 123 45 67", "code": code})

    assert other.status_code == 404
    assert checked.json()["verification_id"] == started["verification_id"]
    assert checked.json()["verified"] is True


async def test_wrong_codes_show_the_checks_left_and_finally_lock(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = await hear(api)

    answers = [(await check(api, verification_id, wrong(code))).json() for _ in range(5)]

    assert [answer["checks_left"] for answer in answers] == [4, 3, 2, 1, 0]
    assert [answer["status"] for answer in answers] == ["pending"] * 4 + ["locked"]
    assert 50 <= answers[-1]["retry_after"] <= 60  # when another can be started
    locked = await check(api, verification_id, code)
    assert (locked.status_code, locked.json()["type"]) == (429, "/problems/verification-locked")
    assert locked.headers["Retry-After"] == str(locked.json()["retry_after"])
    assert (await api.get(f"/verify/{verification_id}")).json()["status"] == "locked"


async def test_a_malformed_code_uses_no_check(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]

    for code in ("", "123", "1234567", "12345a", "\uff11\uff12\uff13\uff14\uff15\uff16\uff17"):
        answer = await check(api, verification_id, code)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/code")

    assert (await api.get(f"/verify/{verification_id}")).json()["checks_left"] == 5


async def test_a_resend_waits_for_the_cooldown_and_the_first_code_still_verifies(
    api: httpx.AsyncClient, redis: Redis
) -> None:
    first = (await start(api)).json()
    first_code = await hear(api)
    own = {"verification_id": first["verification_id"]}
    for named in ({}, own):
        early = await start(api, **named)
        assert (early.status_code, early.json()["type"]) == (429, "/problems/call-cooldown")
        assert early.json()["verification_id"] == named.get("verification_id")
    assert early.headers["Retry-After"] == str(early.json()["retry_after"])

    await age(redis, timedelta(seconds=60))
    second = (await start(api, **own)).json()

    assert second["verification_id"] == first["verification_id"]
    assert (second["calls_placed"], second["calls_left"], second["resend_in"]) == (2, 1, 120)
    assert (await check(api, first["verification_id"], first_code)).json()["verified"] is True


async def test_the_calls_of_a_verification_are_limited(api: httpx.AsyncClient, redis: Redis) -> None:
    own = {"verification_id": (await start(api)).json()["verification_id"]}
    for _ in range(2):
        await age(redis, timedelta(seconds=120))
        assert (await start(api, **own)).status_code == 201

    refused = await start(api, **own)

    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
    assert refused.json()["limit"] == "calls_per_verification"
    assert refused.headers["Retry-After"] == str(refused.json()["retry_after"])


async def test_a_code_expires_after_five_minutes(api: httpx.AsyncClient, redis: Redis) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = await hear(api)
    await age(redis, timedelta(minutes=5))

    assert (await check(api, verification_id, code)).status_code == 404
    assert (await api.get(f"/verify/{verification_id}")).status_code == 404


async def test_a_canceled_verification_cannot_be_verified(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = await hear(api)

    canceled = await api.post(f"/verify/{verification_id}/cancel")

    assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
    checked = await check(api, verification_id, code)
    assert (checked.status_code, checked.json()["type"]) == (409, "/problems/verification-canceled")


@pytest.mark.parametrize(
    ("number", "status", "slug"),
    [
        (MagicNumber.REFUSED, 502, "provider-rejected"),
        (MagicNumber.NO_BALANCE, 503, "balance-too-low"),
        (MagicNumber.NO_ACCESS, 502, "provider-rejected"),
    ],
)
async def test_a_refused_call_leaves_no_keys_but_the_journal(
    api: httpx.AsyncClient, redis: Redis, number: MagicNumber, status: int, slug: str
) -> None:
    refused = await start(api, number)

    assert (refused.status_code, refused.json()["type"]) == (status, f"/problems/{slug}")
    assert await own_keys(redis) == []


@pytest.mark.parametrize("number", [MagicNumber.NO_REPLY_PLACED, MagicNumber.NO_REPLY_NOT_PLACED])
async def test_a_provider_that_does_not_answer_leaves_the_call_unconfirmed(
    redis: Redis, redis_url: str, network: VirtualNetwork, number: MagicNumber
) -> None:
    """The call may have been placed: it is not placed again, and the code verifies if it was heard."""
    settings = sandbox_settings(redis_url, plusofon={"connect_timeout_seconds": 1, "timeout_seconds": 2})
    async with run(create_app(settings, network)) as api:
        started = await start(api, number)
        assert started.status_code == 201
        assert started.json()["call"] == {"status": "unconfirmed"}
        assert (await start(api, number)).status_code == 429
        if number is MagicNumber.NO_REPLY_PLACED:
            checked = await check(api, started.json()["verification_id"], await hear(api, number))
            assert checked.json()["verified"] is True
        assert len(network.calls_of(number)) == (1 if number is MagicNumber.NO_REPLY_PLACED else 0)


@pytest.mark.parametrize(
    ("phone", "reason"),
    [
        ("87011234567", "country"),
        ("+78091234567", "type"),
        ("+74951234567", "type"),
        ("+79401234567", "denied"),
        ("12345", "invalid"),
    ],
)
async def test_a_phone_that_cannot_be_called_is_refused_with_a_reason(
    api: httpx.AsyncClient, phone: str, reason: str
) -> None:
    for refused in (
        await start(api, phone),
        await api.post("/verify/check", json={"phone": phone, "code": "123456"}),
    ):
        body = refused.json()
        assert (refused.status_code, body["type"], body["reason"]) == (
            422,
            "/problems/phone-not-callable",
            reason,
        )
        assert phone not in refused.text


async def test_fifty_concurrent_starts_place_one_call(api: httpx.AsyncClient, network: VirtualNetwork) -> None:
    answers = await asyncio.gather(*[start(api) for _ in range(50)])

    assert sorted(answer.status_code for answer in answers) == [201] + [429] * 49
    assert len(network.calls_of(PHONE)) == 1


async def test_of_a_hundred_concurrent_right_checks_one_verifies(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = await hear(api)

    answers = await asyncio.gather(*[check(api, verification_id, code) for _ in range(100)])

    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 99


async def test_of_a_hundred_concurrent_wrong_checks_five_are_accepted(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api)).json()["verification_id"]
    code = await hear(api)

    answers = await asyncio.gather(*[check(api, verification_id, wrong(code)) for _ in range(100)])

    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 95


async def test_every_redis_key_has_a_ttl_and_contains_no_phone(api: httpx.AsyncClient, redis: Redis) -> None:
    verified, locked, canceled, failed = [
        (await start(api, phone)).json().get("verification_id", "")
        for phone in (PHONE, "+79007654321", "+79001112233", MagicNumber.REFUSED)
    ]
    assert not failed
    await check(api, verified, await hear(api))
    for _ in range(5):
        await check(api, locked, "000000")
    await api.post(f"/verify/{canceled}/cancel")

    keys = await redis.keys()

    assert len(keys) >= 6
    for key in keys:
        is_of_attempts = key[-2:] == b":j" or b"{attempts}" in key
        assert 0 < await redis.pttl(key) <= (30 if is_of_attempts else 1) * 86_400_000
        for phone in (b"9001234567", b"9007654321", b"9001112233"):
            assert phone not in key


async def test_a_pending_verification_uses_at_most_430_bytes(api: httpx.AsyncClient, redis: Redis) -> None:
    """Its call was answered and a wrong code counted.

    The least of some verifications, because the allocator rounds the same data up by 32 bytes more or less.
    """
    for number in range(10):
        phone, client_ip = f"+790{number}1234567", f"198.51.{number}.7"
        verification_id = (await start(api, phone, client_ip=client_ip)).json()["verification_id"]
        code = wrong(await hear(api, phone))
        await api.post("/verify/check", json={"verification_id": verification_id, "code": code, "client_ip": client_ip})

    keys = await own_keys(redis)
    sizes = {key: await redis.memory_usage(key, samples=0) or 0 for key in keys}

    assert len(keys) == 20
    phone_size, record_size = (
        min(sizes[key] for key in keys if (":p:" in key) is is_phone) for is_phone in (True, False)
    )
    assert phone_size + record_size <= 430


@pytest.mark.standalone  # counts the round trips of one server
async def test_a_check_makes_one_round_trip_and_a_start_two(
    redis: Redis, redis_url: str, network: VirtualNetwork, tmp_path: Path
) -> None:
    settings = sandbox_settings(f"unix://{tmp_path / 's'}")
    async with count_writes(redis_url, tmp_path / "s") as writes, run(create_app(settings, network)) as api:
        for warm_up in (PHONE, "+79117654321"):  # connects, and loads the scripts
            await start(api, warm_up)
            await api.post("/verify/check", json={"phone": warm_up, "code": "000000"})
        await start(api, MagicNumber.REFUSED)
        writes.clear()
        verification_id = (await start(api, "+79217654321", client_ip="192.0.2.1")).json()["verification_id"]
        assert len(writes) == 2  # store the call, and record it

        writes.clear()
        await check(api, verification_id, "000000")
        assert len(writes) == 1

        writes.clear()
        await check(api, verification_id, await hear(api, "+79217654321"))
        # The fraud guard counts the success after the response.
        assert len([write for write in writes if b"{guard}" not in write]) == 1

        writes.clear()
        await start(api, MagicNumber.NO_ACCESS)
        assert len(writes) == 2  # a refund instead of the record of the call

        writes.clear()
        await start(api, "+79217654321")
        assert len(writes) == 1  # refused


@asynccontextmanager
async def count_writes(url: str, path: Path) -> AsyncIterator[list[bytes]]:
    """Proxy the connections of the service to Redis; record each write, which with its reply is one round trip."""
    writes: list[bytes] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, noted: list[bytes] | None) -> None:
        while data := await reader.read(1 << 20):
            if noted is not None:
                noted.append(data)
            writer.write(data)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        await asyncio.gather(relay(reader, redis_writer, writes), relay(redis_reader, writer, None))

    server = await asyncio.start_unix_server(connect, path)
    yield writes
    server.close()


async def test_a_code_from_before_a_secret_key_rotation_verifies_by_id_and_by_phone(
    redis: Redis, redis_url: str, network: VirtualNetwork
) -> None:
    old, new = "old-key-of-the-tests-0123456789-0123456789", "new-key-of-the-tests-0123456789-0123456789"
    phones = (PHONE, "+79007654321")
    async with run(create_app(sandbox_settings(redis_url, secret={"key": old}), network)) as api:
        ids = [(await start(api, phone)).json()["verification_id"] for phone in phones]
        codes = [await hear(api, phone) for phone in phones]

    rotated = sandbox_settings(redis_url, secret={"key": new, "previous_keys": old})
    async with run(create_app(rotated, network)) as api:
        by_id = await check(api, ids[0], codes[0])
        by_phone = await api.post("/verify/check", json={"phone": phones[1], "code": codes[1]})
        cooldown = await start(api, PHONE)

    assert by_id.json()["verified"] is by_phone.json()["verified"] is True
    assert cooldown.status_code == 429


async def test_the_code_length_is_configurable(redis: Redis, redis_url: str, network: VirtualNetwork) -> None:
    async with run(create_app(sandbox_settings(redis_url, code={"length": 4}), network)) as api:
        started = (await start(api)).json()
        code = await hear(api)
        checked = await check(api, started["verification_id"], code)

    assert (started["code_length"], len(code), checked.json()["verified"]) == (4, 4, True)
