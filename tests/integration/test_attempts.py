"""Support asks why a phone got no call: the API and the command line answer, for everything that can happen."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.settings import Settings
from app.settings.sections import PlusofonSettings
from tests.integration.conftest import PACE, SECRET_KEY, run, sandbox_settings
from tests.integration.test_fault_table import KEY, production_settings
from tests.keys import stored
from tests.redis_commands import flush, open_commands
from tests.waiting import eventually

ADMIN = {"Authorization": "Bearer an-admin-key"}
FINAL = {"completed", "busy", "no_answer", "failed"}
VERIFIED, MISTYPED, IMPATIENT, OUTAGE = "+79161234567", "+79261234567", "+79031234567", "+79051234567"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str) -> Iterator[None]:
    """Begin with an empty Redis; switch logs on again, which a command switches off for its process."""
    monkeypatch.chdir(tmp_path)  # where .env is looked for
    asyncio.run(flush(redis_url))
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    keys = f"operator:{hashlib.sha256(b'an-admin-key').hexdigest()}"
    return sandbox_settings(redis_url, admin={"keys": keys})


async def started(api: httpx.AsyncClient, phone: str) -> str:
    answer = await api.post("/verify/start", json={"phone": phone})
    return str(answer.json().get("verification_id"))


async def check(api: httpx.AsyncClient, verification_id: str, code: str) -> dict[str, Any]:
    body = {"verification_id": verification_id, "code": code}
    answer: dict[str, Any] = (await api.post("/verify/check", json=body)).json()
    return answer


async def found(api: httpx.AsyncClient, phone: str) -> dict[str, Any]:
    answer = await api.post("/admin/attempts/find", json={"phone": phone}, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def until_ended(api: httpx.AsyncClient, *phones: str) -> None:
    """Wait until the calls of phones are followed to their ends."""
    for phone in phones:
        await eventually(partial(found, api, phone), lambda body: body["attempts"][0]["call_status"] in FINAL)


async def play(settings: Settings, redis_url: str) -> None:
    """Play everything that support is asked about."""
    network = VirtualNetwork(pace=PACE)
    async with run(create_app(production_settings(redis_url, "http://127.0.0.1:1"))) as api:
        api.headers["Authorization"] = f"Bearer {KEY}"
        await started(api, OUTAGE)
    async with run(create_app(settings, network)) as api:
        for phone in (MagicNumber.BUSY, MagicNumber.NO_ANSWER, MagicNumber.REFUSED):
            await started(api, phone)
        for _ in range(3):
            await started(api, IMPATIENT)
        mistyped = await started(api, MISTYPED)
        for _ in range(5):
            await check(api, mistyped, "000000")
        verified = await started(api, VERIFIED)
        await until_ended(api, MagicNumber.BUSY, MagicNumber.NO_ANSWER, MISTYPED, VERIFIED, IMPATIENT)
        assert (await check(api, verified, str(network.calls_of(VERIFIED)[0].heard)))["verified"]


def command(redis_url: str, *arguments: str) -> str:
    environment = {"MODE": "sandbox", "REDIS_URL": redis_url, "REDIS_TIMEOUT_SECONDS": "20", "SECRET_KEY": SECRET_KEY}
    done = CliRunner().invoke(cli, ["attempts", *arguments], env=environment)
    assert done.exit_code == 0, done.output
    return done.output


ANSWERS = {
    MagicNumber.BUSY: ("placed", "busy", "pending", ["asked", "placed", "busy"]),
    MagicNumber.NO_ANSWER: ("placed", "no_answer", "pending", ["asked", "placed", "no_answer"]),
    MagicNumber.REFUSED: ("refused", None, None, ["asked", "refused"]),
    OUTAGE: ("refused", None, None, ["asked", "refused"]),
    MISTYPED: ("placed", "completed", "locked", ["asked", "placed", *["wrong_code"] * 5, "locked", "completed"]),
    VERIFIED: ("placed", "completed", "verified", ["asked", "placed", "completed", "verified"]),
}
REASONS = {
    MagicNumber.REFUSED: "rejected: error find flashcall account: not found",
    OUTAGE: "unavailable: refused",
}


def test_support_finds_out_what_became_of_each_call(settings: Settings, redis_url: str) -> None:
    asyncio.run(play(settings, redis_url))

    async def ask() -> None:
        async with run(create_app(settings, VirtualNetwork(pace=PACE))) as api:
            for phone, (outcome, status, ending, events) in ANSWERS.items():
                (attempt,) = (await found(api, phone))["attempts"]
                assert (attempt["outcome"], attempt["call_status"], attempt["ending"]) == (outcome, status, ending)
                told = [entry["event"] for entry in attempt["timeline"]]
                assert [event for event in told if event not in {"ringing", "answered"}] == events
                assert attempt["reason"] == REASONS.get(phone, "")
                assert attempt["phone"] == f"{phone[:5]}•••{phone[-4:]}"
            impatient = await found(api, IMPATIENT)
            assert [(one["reason"], one["count"]) for one in impatient["refused_starts"]] == [("call_cooldown", 2)]
            story = await api.get(f"/admin/attempts/{attempt['verification_id']}", headers=ADMIN)
            assert story.json()["attempts"] == [attempt]

    asyncio.run(ask())
    for phone, (outcome, status, ending, _) in ANSWERS.items():
        output = command(redis_url, "find", phone)
        line = output.splitlines()[1]
        assert [word for word in (outcome, status, ending) if word and word not in line] == []
        assert REASONS.get(phone, "") in output
        assert phone not in output
    assert "refused 2 times: call_cooldown" in command(redis_url, "find", IMPATIENT)


def test_support_finds_starts_that_were_refused_before_a_provider_was_asked(settings: Settings, redis_url: str) -> None:
    in_outage, without_money = "+79061234567", "+79091234567"

    async def play() -> None:
        async with run(create_app(settings, VirtualNetwork(pace=PACE, balance=Decimal(5)))) as api:
            await eventually(lambda: api.get("/readyz"), lambda answer: answer.json()["balance"] == "low")
            await started(api, without_money)
        async with open_commands(redis_url) as redis:
            await redis.delete(stored("{balance}"))
        async with run(create_app(production_settings(redis_url, "http://127.0.0.1:1"))) as api:
            api.headers["Authorization"] = f"Bearer {KEY}"
            for number in range(PlusofonSettings().circuit_failures):
                await started(api, f"+790512345{number:02}")
            for _ in range(2):
                await started(api, in_outage)

    asyncio.run(play())

    assert "refused once: provider_balance_too_low" in command(redis_url, "find", without_money)
    assert "refused 2 times: provider_unavailable" in command(redis_url, "find", in_outage)


def test_one_verification_is_shown_as_a_time_line(settings: Settings, redis_url: str) -> None:
    asyncio.run(play(settings, redis_url))
    listed = json.loads(command(redis_url, "list", "--outcome", "verified", "--json"))["attempts"]
    (verified,) = listed

    lines = command(redis_url, "show", verified["verification_id"]).splitlines()

    assert lines[0] == f"{verified['verification_id']}   VERIFIED"
    assert lines[1:5] == [
        "phone     +7916•••4567, operator mts",
        "client    sandbox, purpose phone_verification",
        "codes     0 wrong",
        "cost      3 RUB",
    ]
    told = [line.split()[4] for line in lines[5:]]
    assert (told[:2], told[-2:]) == (["asked", "placed"], ["completed", "verified"])
    assert "the provider's id" in lines[6]


def test_a_list_has_the_latest_first_and_filters(settings: Settings, redis_url: str) -> None:
    asyncio.run(play(settings, redis_url))

    everything = json.loads(command(redis_url, "list", "--json"))["attempts"]
    moments = [one["started_at"] for one in everything]
    assert (len(everything), moments) == (7, sorted(moments, reverse=True))
    assert json.loads(command(redis_url, "list", "--limit", "2", "--json"))["attempts"] == everything[:2]
    for filters, phones in (
        (("--outcome", "busy"), ["+7900•••0001"]),
        (("--outcome", "refused", "--client", "sandbox"), ["+7900•••0003"]),
        (("--channel", "flash_call"), []),
        (("--since", "2020-01-01", "--outcome", "locked"), ["+7926•••4567"]),
    ):
        assert [
            one["phone"] for one in json.loads(command(redis_url, "list", *filters, "--json"))["attempts"]
        ] == phones
    table = command(redis_url, "list", "--outcome", "no_answer")
    assert table.splitlines()[0].split()[:3] == ["started", "(UTC)", "phone"]
    assert "no_answer" in table.splitlines()[1]


def test_pages_of_the_api_follow_each_other(settings: Settings, redis_url: str) -> None:
    asyncio.run(play(settings, redis_url))

    async def read() -> list[str]:
        seen: list[str] = []
        async with run(create_app(settings, VirtualNetwork(pace=PACE))) as api:
            query: dict[str, str | int] = {"limit": 3, "since": (datetime.now(UTC) - timedelta(days=2)).isoformat()}
            while True:
                page = (await api.get("/admin/attempts", params=query, headers=ADMIN)).json()
                seen += [one["verification_id"] for one in page["attempts"]]
                if page["next_before"] is None:
                    return seen
                query["before"] = page["next_before"]

    seen = asyncio.run(read())
    assert len(seen) == len(set(seen)) == 7


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/attempts"),
        ("POST", "/admin/attempts/find"),
        ("GET", "/admin/attempts/vrf_0a11b22c33d44e55f667788"),
    ],
)
def test_attempts_need_an_admin_key(settings: Settings, redis_url: str, method: str, path: str) -> None:
    async def ask() -> int:
        async with run(create_app(settings, VirtualNetwork())) as api:
            return (await api.request(method, path, json={"phone": VERIFIED})).status_code

    assert asyncio.run(ask()) == 401


def test_an_unknown_verification_and_a_wrong_query_are_problems(settings: Settings, redis_url: str) -> None:
    async def ask() -> list[tuple[int, str]]:
        async with run(create_app(settings, VirtualNetwork())) as api:
            answers = [
                await api.get("/admin/attempts/vrf_0a11b22c33d44e55f667788", headers=ADMIN),
                await api.get("/admin/attempts", params={"outcome": "sunny"}, headers=ADMIN),
                await api.get("/admin/attempts", params={"limit": 1000}, headers=ADMIN),
                await api.post("/admin/attempts/find", json={"phone": "112"}, headers=ADMIN),
            ]
            return [(answer.status_code, answer.headers["Content-Type"]) for answer in answers]

    assert asyncio.run(ask()) == [(status, "application/problem+json") for status in (404, 422, 422, 422)]


@pytest.mark.parametrize("path", ["attempts?since=", "attempts?before=", "audit?before="])
@pytest.mark.parametrize(
    ("moment", "status"),
    [
        ("0", 422),
        ("1769731200", 422),
        ("2026-01-30", 422),
        ("2026-01-30T00:00:00", 422),
        ("2026-02-30T00:00:00Z", 422),
        ("\u0662026-01-30T00:00:00Z", 422),
        ("2026-01-30t00:00:00.5z", 200),
        ("2026-01-30T00:00:00%2B03:00", 200),
        ("0001-01-01T00:00:00%2B14:00", 200),
        ("9999-12-31T23:59:59-12:00", 200),
    ],
)
async def test_a_moment_is_a_date_time_with_an_offset_however_far(
    settings: Settings, path: str, moment: str, status: int
) -> None:
    async with run(create_app(settings, VirtualNetwork())) as api:
        assert (await api.get(f"/admin/{path}{moment}", headers=ADMIN)).status_code == status


@pytest.mark.parametrize("path", ["/admin/attempts", "/admin/audit", "/admin/stats", "/sandbox/calls"])
async def test_a_misspelt_filter_is_refused_for_it_would_list_everything(settings: Settings, path: str) -> None:
    async with run(create_app(settings, VirtualNetwork())) as api:
        answer = await api.get(path, params={"clinet": "shop"}, headers=ADMIN)

        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/clinet")


def test_nothing_is_known_of_a_phone_that_nobody_asked_to_call(redis_url: str) -> None:
    environment = {"MODE": "sandbox", "REDIS_URL": redis_url, "REDIS_TIMEOUT_SECONDS": "20", "SECRET_KEY": SECRET_KEY}
    for arguments in (["find", VERIFIED], ["show", "vrf_0a11b22c33d44e55f667788"]):
        done = CliRunner().invoke(cli, ["attempts", *arguments], env=environment)
        assert done.exit_code == 1
        assert "JOURNAL_DAYS" in done.output
