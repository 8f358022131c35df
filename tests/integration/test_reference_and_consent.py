"""A client's own reference, and its proof of consent: where they come back, and what a resend and a repetition do."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from app.cli import cli
from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.webhook_log import WebhookLog
from app.settings import Settings
from tests.ageing import age
from tests.integration.conftest import SECRET_KEY, run, sandbox_settings
from tests.integration.test_verification import PHONE, check, hear, wrong
from tests.waiting import eventually

ADMIN = {"Authorization": "Bearer an-admin-key"}
REFERENCE = "Заказ № 1024 | 50%"
CONSENT = {"version": "calls-2026-01", "at": "2026-01-31T11:59:30.1234+03:00"}
RECORDED = {"version": "calls-2026-01", "at": "2026-01-31T08:59:30.123000Z"}
GIVEN: dict[str, Any] = {"reference": REFERENCE, "consent": CONSENT}


@pytest.fixture
def settings(redis_url: str) -> Settings:
    keys = f"operator:{hashlib.sha256(b'an-admin-key').hexdigest()}"
    return sandbox_settings(redis_url, admin={"keys": keys}, channels=["voice", "reverse_call"])


@pytest.fixture
async def api(redis: Redis, settings: Settings, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    async with run(create_app(settings, network, webhook_log=WebhookLog())) as client:
        yield client


async def start(api: httpx.AsyncClient, key: str | None = None, **fields: object) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await api.post("/verify/start", json={"phone": PHONE, "channel": "voice", **fields}, headers=headers)


async def sent(api: httpx.AsyncClient, kind: str) -> dict[str, Any]:
    """Return the data of the first webhook of a type, when it was sent."""

    async def found() -> list[dict[str, Any]]:
        attempts = (await api.get("/sandbox/events")).json()["attempts"]
        return [attempt["event"]["data"] for attempt in attempts if attempt["event"]["type"] == kind]

    return (await eventually(found))[0]


def command(redis_url: str, *arguments: str) -> str:
    environment = {"MODE": "sandbox", "REDIS_URL": redis_url, "REDIS_TIMEOUT_SECONDS": "20", "SECRET_KEY": SECRET_KEY}
    done = CliRunner().invoke(cli, list(arguments), env=environment)
    assert done.exit_code == 0, done.output
    return done.output


async def test_the_reference_comes_back_wherever_the_verification_is_named(api: httpx.AsyncClient) -> None:
    started = (await start(api, **GIVEN)).json()
    verification_id, code = started["verification_id"], await hear(api)
    read = (await api.get(f"/verify/{verification_id}")).json()
    mistyped = (await check(api, verification_id, wrong(code))).json()
    verified = (await check(api, verification_id, code)).json()
    proof = {"token": verified["token"], "purpose": "phone_verification"}
    redeemed = (await api.post("/verify/token/redeem", json=proof)).json()
    claims = json.loads(base64.urlsafe_b64decode(verified["token"].split(".")[1] + "=="))
    attempts = (await api.get(f"/admin/attempts/{verification_id}", headers=ADMIN)).json()["attempts"]

    answers = [started, read, mistyped, verified, redeemed, claims, *attempts, await sent(api, "verification.verified")]
    assert [answer["reference"] for answer in answers] == [REFERENCE] * 8
    assert [answer["consent"] for answer in (started, read, *attempts)] == [RECORDED] * 3
    assert not any("consent" in answer for answer in (mistyped, verified, redeemed, claims))


async def test_without_them_no_answer_names_them(api: httpx.AsyncClient) -> None:
    started = await start(api)
    checked = await check(api, started.json()["verification_id"], await hear(api))

    for answer in (started, checked):
        assert not answer.json().keys() & {"reference", "consent"}
    data = await sent(api, "verification.verified")
    assert not data.keys() & {"reference", "consent"}


async def test_attempts_are_found_by_their_reference(api: httpx.AsyncClient) -> None:
    verification_id = (await start(api, **GIVEN)).json()["verification_id"]
    await start(api, phone="+79161234567", reference="another")

    page = (await api.get("/admin/attempts", params={"reference": REFERENCE}, headers=ADMIN)).json()

    assert [one["verification_id"] for one in page["attempts"]] == [verification_id]


async def test_a_repetition_with_another_reference_or_consent_is_another_request(
    api: httpx.AsyncClient, network: VirtualNetwork
) -> None:
    first = await start(api, "key", **GIVEN)

    again = await start(api, "key", **GIVEN)
    others = [
        await start(api, "key", reference="another", consent=CONSENT),
        await start(api, "key", reference=REFERENCE, consent={**CONSENT, "version": "2"}),
        await start(api, "key"),
    ]

    assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")
    assert {(answer.status_code, answer.json()["type"]) for answer in others} == {
        (422, "/problems/idempotency-key-reused")
    }
    assert len(network.calls_of(PHONE)) == 1


@pytest.mark.parametrize("channel", ["voice", "reverse_call"])
async def test_another_call_for_a_verification_keeps_both(api: httpx.AsyncClient, redis: Redis, channel: str) -> None:
    first = (await start(api, **GIVEN)).json()["verification_id"]
    await hear(api)
    await age(redis, timedelta(seconds=120))

    resent = (await start(api, verification_id=first, channel=channel)).json()

    assert (resent["verification_id"] == first) is (channel == "voice")
    assert (resent["reference"], resent["consent"]) == (REFERENCE, RECORDED)


async def test_a_resend_under_another_reference_is_refused_and_calls_nobody(
    api: httpx.AsyncClient, redis: Redis, network: VirtualNetwork
) -> None:
    first = (await start(api, **GIVEN)).json()["verification_id"]
    await hear(api)
    await age(redis, timedelta(seconds=120))

    refused = await start(api, verification_id=first, reference="another")

    assert (refused.status_code, refused.json()["type"]) == (404, "/problems/verification-not-found")
    assert len(network.calls_of(PHONE)) == 1


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"reference": "a\u202eb"}, "#/reference"),
        ({"reference": 1024}, "#/reference"),
        ({"reference": "x" * 65}, "#/reference"),
        ({"consent": {"version": "2"}}, "#/consent/at"),
        ({"consent": {"version": "", "at": CONSENT["at"]}}, "#/consent/version"),
        ({"consent": {"version": "2", "at": "2026-01-31T09:00:00"}}, "#/consent/at"),
        ({"consent": {"version": "2", "at": "2999-01-31T09:00:00Z"}}, "#/consent/at"),
        ({"consent": {"version": "2", "at": CONSENT["at"], "by": "sms"}}, "#/consent/by"),
    ],
)
async def test_a_wrong_one_is_a_problem_that_does_not_repeat_it(
    api: httpx.AsyncClient, network: VirtualNetwork, fields: dict[str, Any], pointer: str
) -> None:
    answer = await start(api, **fields)

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/validation-failed")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert "xxx" not in answer.text
    assert not network.calls_of(PHONE)


def test_the_command_line_shows_both(settings: Settings, redis_url: str) -> None:
    async def play() -> str:
        async with run(create_app(settings, VirtualNetwork(pace=0))) as api:
            return str((await start(api, **GIVEN)).json()["verification_id"])

    verification_id = asyncio.run(play())

    for name in ("attempts", "verifications"):
        lines = command(redis_url, name, "show", verification_id).splitlines()
        assert f"reference {REFERENCE}" in lines
        assert "consent   calls-2026-01, 2026-01-31 08:59:30 UTC" in lines
    shown = json.loads(command(redis_url, "verifications", "show", verification_id, "--json"))
    assert (shown["reference"], shown["consent"]) == (REFERENCE, {**RECORDED, "at": "2026-01-31T08:59:30Z"})
    listed = json.loads(command(redis_url, "attempts", "list", "--reference", REFERENCE, "--json"))["attempts"]
    assert [(one["verification_id"], one["consent"]) for one in listed] == [(verification_id, RECORDED)]
    assert f"reference {REFERENCE}" in command(redis_url, "attempts", "find", PHONE)
