"""The log: one line per request, one format for all loggers, and no code, phone, token or key in any line."""

import hashlib
import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from redis.asyncio import Redis

from app.api import exchange
from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.telemetry import event_log
from app.telemetry.logging import configure_logging
from app.tokens import generate_keys
from tests.integration.conftest import SECRET_KEY, run, sandbox_settings
from tests.integration.test_fault_table import KEY, production_settings
from tests.integration.test_verification import hear
from tests.log_events import COMMON_FIELDS, documented
from tests.waiting import until

ROOT = Path(__file__).parents[2]
SHOP, OPERATOR = "pvk_not-a-real-key-of-a-shop", "pvk_not-a-real-key-of-an-operator"
PHONE, OTHER = "+79161234567", "+79261234568"


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Return the log at debug level, as JSON; restore the logging configuration afterwards."""
    root, text = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("httpx", "uvicorn.access", "asyncio")}
    monkeypatch.setattr(sys, "stderr", text)
    configure_logging(level="debug", style="json")
    monkeypatch.setattr(exchange, "requests", structlog.get_logger())  # the previous loggers keep their stream
    monkeypatch.setattr(event_log, "events", structlog.get_logger())
    yield text
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers, root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def lines(logged: io.StringIO) -> list[dict[str, Any]]:
    logging.getLogger().handlers[0].flush()  # lines of requests are held for a moment
    return [json.loads(line) for line in logged.getvalue().splitlines()]


def keys(name: str, key: str) -> dict[str, str]:
    return {"keys": f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"}


@pytest.fixture
async def api(
    redis: Redis, redis_url: str, network: VirtualNetwork, logged: io.StringIO
) -> AsyncIterator[httpx.AsyncClient]:
    settings = sandbox_settings(
        redis_url,
        api=keys("shop", SHOP),
        admin=keys("operator", OPERATOR),
        call={"cooldowns_seconds": "0"},
        token={"keys": generate_keys()},
        plusofon={"timeout_seconds": 2, "connect_timeout_seconds": 1},
    )
    async with run(create_app(settings, network)) as client:
        client.headers["Authorization"] = f"Bearer {SHOP}"
        yield client


async def test_each_request_is_one_line_with_client_route_and_outcome(
    api: httpx.AsyncClient, logged: io.StringIO
) -> None:
    logged.truncate(0)
    logged.seek(0)
    await api.post("/verify/start", json={"phone": PHONE}, headers={"X-Request-ID": "mine-1"})
    await api.post("/verify/check", json={"phone": OTHER, "code": "123456"})
    await api.get("/nowhere/+79161234567")

    handled = [line for line in lines(logged) if line["event"] == "request.handled"]
    assert [(line["method"], line["route"], line["status"], line["outcome"]) for line in handled] == [
        ("POST", "/verify/start", 201, "ok"),
        ("POST", "/verify/check", 404, "verification-not-found"),
        ("GET", None, 404, "http-404"),
    ]
    assert (handled[0]["request_id"], handled[0]["client"], handled[0]["level"]) == ("mine-1", "shop", "info")
    assert all(line["duration_ms"] >= 0 and line["timestamp"].endswith("Z") for line in handled)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_probes_and_scrapes_are_logged_at_debug_level(
    api: httpx.AsyncClient, logged: io.StringIO, path: str
) -> None:
    await api.get(path)

    assert [line["level"] for line in lines(logged) if line.get("route") == path] == ["debug"]


def test_all_loggers_write_the_same_format(logged: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[1mStarted"})
    logging.getLogger("somebody").warning("of %s", "theirs")
    logging.getLogger("app.somewhere").warning("thing.happened", extra={"verification_id": "vrf_1"})
    try:
        int("a bug")
    except ValueError:
        logging.getLogger("app").exception("thing.failed")

    found = lines(logged)

    assert [(line["logger"], line["level"]) for line in found] == [
        ("uvicorn.error", "info"), ("somebody", "warning"), ("app.somewhere", "warning"),
        ("app", "error"),
    ]  # fmt: skip
    assert found[0].keys() == {"event", "level", "logger", "timestamp"}
    assert found[1]["event"] == "of theirs"
    assert found[2]["verification_id"] == "vrf_1"
    assert "ValueError: invalid literal" in found[3]["exception"]


def test_python_warnings_are_logged_as_json_too() -> None:
    program = (
        "import warnings; from app.telemetry.logging import configure_logging;"
        " configure_logging(level='info', style='json'); warnings.warn('old')"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    line = json.loads(ended.stderr)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "UserWarning: old" in line["event"]


def test_a_terminal_gets_text_and_anything_else_json(monkeypatch: pytest.MonkeyPatch, logged: io.StringIO) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for kind, is_json in ((Terminal, False), (io.StringIO, True)):
        text = kind()
        monkeypatch.setattr(sys, "stderr", text)
        configure_logging(level="info", style="auto")
        logging.getLogger("app").info("thing.happened")
        assert text.getvalue().startswith("{") is is_json
        assert "thing.happened" in text.getvalue()


async def logs(logged: io.StringIO, event: str) -> dict[str, Any]:
    """Return the first line of an event, once there is one."""
    await until(lambda: event in {line["event"] for line in lines(logged)})
    return next(line for line in lines(logged) if line["event"] == event)


def story(logged: io.StringIO, search: str) -> list[str]:
    """Return the lines with a text, as a person reads them."""
    facts = ("call_number", "channel", "status", "kind", "reason", "why", "limit")
    found = [line for line in lines(logged) if search in json.dumps(line, ensure_ascii=False)]
    return [" ".join([line["event"], *(str(line[fact]) for fact in facts if line.get(fact))]) for line in found]


async def test_a_search_for_the_id_finds_the_whole_story_in_order(api: httpx.AsyncClient, logged: io.StringIO) -> None:
    verification_id = (await api.post("/verify/start", json={"phone": PHONE})).json()["verification_id"]
    await api.post("/verify/start", json={"phone": OTHER})
    await api.post("/verify/check", json={"verification_id": verification_id, "code": "000000"})
    code = await hear(api, PHONE)
    await logs(logged, "call.ended")
    await api.post("/verify/check", json={"phone": PHONE, "code": code})
    await api.post("/verify/check", json={"verification_id": verification_id, "code": code})

    assert story(logged, verification_id) == [
        "call.placed 1 voice",
        "request.handled 1 voice 201",
        "verification.code_wrong",
        "request.handled 200",
        "call.ended 1 voice completed",
        "verification.verified voice",
        "request.handled 200",
        "request.handled 409",
    ]


async def test_each_event_names_the_request_the_client_and_the_phone(
    api: httpx.AsyncClient, logged: io.StringIO
) -> None:
    answer = await api.post("/verify/start", json={"phone": PHONE}, headers={"X-Request-ID": "mine-1"})
    verification_id = answer.json()["verification_id"]
    placed, handled, ended = (
        [await logs(logged, event) for event in ("call.placed", "request.handled", "call.ended")]
    )  # fmt: skip

    for line in (placed, handled, ended):
        assert line["verification_id"] == verification_id
        assert (line["client"], line["phone"], line["call_number"]) == ("shop", "+7916•••4567", 1)
    assert placed["request_id"] == handled["request_id"] == "mine-1"
    assert "request_id" not in ended


@pytest.mark.parametrize(
    ("phone", "told"),
    [
        (MagicNumber.BUSY, ["call.placed 1 voice", "request.handled 1 voice 201", "call.ended 1 voice busy"]),
        (
            MagicNumber.REFUSED,
            ["call.refused 1 voice rejected error find flashcall account: not found", "request.handled 1 voice 502"],
        ),
        (MagicNumber.NO_BALANCE, ["call.refused 1 voice balance_too_low", "request.handled 1 voice 503"]),
        (MagicNumber.NO_REPLY_PLACED, ["call.unconfirmed 1 voice TimeoutError", "request.handled 1 voice 201"]),
    ],
)
async def test_the_story_of_a_call_that_fails_says_why(
    api: httpx.AsyncClient, logged: io.StringIO, phone: MagicNumber, told: list[str]
) -> None:
    await api.post("/verify/start", json={"phone": phone})
    if told[-1].startswith("call.ended"):
        await logs(logged, "call.ended")

    (verification_id,) = {line["verification_id"] for line in lines(logged) if "verification_id" in line}
    assert story(logged, verification_id) == told
    levels = {line["event"]: line["level"] for line in lines(logged) if "verification_id" in line}
    assert levels["request.handled"] == ("info" if told[-1].endswith(("201", "busy")) else "warning")


async def test_a_provider_that_is_not_reached_is_logged_with_the_step_that_failed(
    redis: Redis, redis_url: str, logged: io.StringIO
) -> None:
    settings = production_settings(redis_url, "http://127.0.0.1:1")
    async with run(create_app(settings)) as client:
        await client.post("/verify/start", json={"phone": PHONE}, headers={"Authorization": f"Bearer {KEY}"})

    refused, handled = await logs(logged, "call.refused"), await logs(logged, "request.handled")
    assert (refused["kind"], refused["reason"], handled["status"]) == ("unavailable", "refused", 503)
    tries = [line for line in lines(logged) if line["event"] == "plusofon.not_reached" and "request_id" in line]
    assert {(line["reason"], line["request_id"], line["verification_id"]) for line in tries} == {
        ("refused", refused["request_id"], refused["verification_id"])
    }


async def test_a_start_that_a_limit_refuses_is_logged_with_the_limit_and_the_wait(
    redis: Redis, redis_url: str, network: VirtualNetwork, logged: io.StringIO
) -> None:
    async with run(create_app(sandbox_settings(redis_url), network)) as client:
        await client.post("/verify/start", json={"phone": PHONE})
        await client.post("/verify/start", json={"phone": PHONE})

    refused = await logs(logged, "start.refused")
    assert (refused["limit"], refused["retry_after"], refused["phone"]) == ("call_cooldown", 60, "+7916•••4567")
    assert refused["level"] == "info"
    assert "verification_id" not in refused
    assert story(logged, refused["request_id"]) == ["start.refused call_cooldown", "request.handled 429"]


async def test_the_end_of_a_verification_is_logged(api: httpx.AsyncClient, logged: io.StringIO) -> None:
    locked = (await api.post("/verify/start", json={"phone": PHONE})).json()["verification_id"]
    for _ in range(5):
        await api.post("/verify/check", json={"verification_id": locked, "code": "000000"})
    canceled = (await api.post("/verify/start", json={"phone": OTHER})).json()["verification_id"]
    await api.post(f"/verify/{canceled}/cancel")

    assert (await logs(logged, "verification.locked"))["verification_id"] == locked
    line = await logs(logged, "verification.canceled")
    assert (line["verification_id"], line["phone"]) == (canceled, "+7926•••4568")


async def test_a_finished_attempt_is_one_event_with_all_its_facts_and_the_expiry_another(
    api: httpx.AsyncClient, logged: io.StringIO, redis: Redis, redis_url: str
) -> None:
    """The service has run for half an hour, as far as Redis knows. A phone that a client writes anywhere is masked."""
    consent = {"version": f"of {MagicNumber.BUSY}", "at": "2026-01-31T09:00:00Z"}
    body = {"phone": MagicNumber.BUSY, "reference": f"order-1024/{MagicNumber.BUSY}", "consent": consent}
    verification_id = (await api.post("/verify/start", json=body)).json()["verification_id"]
    await logs(logged, "call.ended")
    (key,) = await redis.keys("*:j")
    entries: Any = await redis.xrange(key)
    await redis.delete(key)
    for entry_id, fields in entries:
        moment, _, number = entry_id.decode().partition("-")
        await redis.xadd(key, fields, id=f"{int(moment) - 20 * 60_000}-{number}")
    await redis.pexpire(key, 60_000)
    await redis.hset("pv3{attempts}", "reported_to", int(moment) - 40 * 60_000)

    async with run(create_app(sandbox_settings(redis_url))):
        finished, expired = await logs(logged, "attempt.finished"), await logs(logged, "verification.expired")

    assert (finished["verification_id"], finished["call_status"], finished["ending"]) == (
        verification_id, "busy", "expired",
    )  # fmt: skip
    assert [entry["event"] for entry in finished["timeline"]] == ["asked", "placed", "busy", "expired"]
    assert (finished["cost_rub"], finished["phone"]) == ("3", "+7900•••0001")
    assert finished["reference"] == "order-1024/+7900•••0001"
    assert finished["consent"] == {"version": "of +7900•••0001", "at": "2026-01-31T09:00:00Z"}
    assert MagicNumber.BUSY.removeprefix("+7") not in logged.getvalue()
    assert (expired["verification_id"], expired["phone"]) == (verification_id, "+7900•••0001")
    events = documented()
    for line in (finished, expired):
        assert line.keys() - COMMON_FIELDS == events[line["event"]]


async def test_what_a_caller_sends_in_place_of_an_id_is_not_logged(api: httpx.AsyncClient, logged: io.StringIO) -> None:
    await api.post("/verify/check", json={"verification_id": PHONE, "code": "123456"})
    await api.get(f"/verify/{PHONE}")
    await api.post(f"/verify/{PHONE}/cancel")
    await api.post("/verify/start", json={"phone": OTHER, "verification_id": PHONE})

    assert len(lines(logged)) >= 4
    assert PHONE.removeprefix("+7") not in logged.getvalue()


async def test_a_failure_of_redis_is_logged_as_that_of_no_request(
    api: httpx.AsyncClient, redis: Redis, logged: io.StringIO
) -> None:
    await api.post("/verify/start", json={"phone": PHONE})  # its request made the connection
    await redis.config_set("maxmemory", "1")
    try:
        answer = await api.post("/verify/start", json={"phone": OTHER})
    finally:
        await redis.config_set("maxmemory", "0")

    assert answer.status_code == 503
    line = await logs(logged, "store.unavailable")
    assert line["reason"] == "out_of_memory"
    assert line.keys().isdisjoint({"request_id", "phone", "client"})


async def test_no_log_line_contains_a_code_a_phone_a_token_or_a_key(
    api: httpx.AsyncClient, network: VirtualNetwork, logged: io.StringIO, redis: Redis
) -> None:
    """At debug level, of all loggers, in success and in every kind of failure."""
    secrets = [SHOP, OPERATOR, SECRET_KEY, "sandbox-access-token"]
    phones = [PHONE, OTHER, *MagicNumber]
    for phone in phones:
        await api.post("/verify/start", json={"phone": phone, "client_ip": "192.0.2.77"})
        for code in ("908172", "635241"):
            await api.post(
                "/verify/check", json={"phone": phone, "code": code}, headers={"Idempotency-Key": f"k{code}"}
            )
            secrets.append(code)
    code = await hear(api, PHONE)
    secrets.append(code)
    verified = (await api.post("/verify/check", json={"phone": PHONE, "code": code})).json()
    assert verified["verified"]
    secrets.append(verified["token"])
    await api.post("/verify/token/redeem", json={"token": verified["token"], "purpose": "phone_verification"})
    await api.post("/verify/token/redeem", json={"token": verified["token"] + "x", "purpose": "login"})
    await api.get(f"/verify/{verified['verification_id']}")
    await api.get("/provider/account", headers={"Authorization": f"Bearer {OPERATOR}"})
    await api.get("/admin/guard", headers={"Authorization": f"Bearer {OPERATOR}"})
    await api.delete(f"/admin/guard/{PHONE}", headers={"Authorization": f"Bearer {OPERATOR}"})
    await api.get(f"/{PHONE}?code={code}", headers={"X-Request-ID": PHONE, "Authorization": f"Bearer {SHOP}x"})
    await api.post("/verify/check", json={"phone": PHONE, "code": f"{code}99"})
    await api.post(
        "/verify/start", content=f'{{"phone": "{PHONE}"'.encode(), headers={"Content-Type": "application/json"}
    )

    text = logged.getvalue()

    assert len(lines(logged)) > 40
    assert {"request.handled", "call.unconfirmed"} <= {line["event"] for line in lines(logged)}
    events = documented()
    for line in lines(logged):
        if line["logger"].startswith("app."):
            assert line.keys() - COMMON_FIELDS <= events[line["event"]], line
    for secret in secrets:
        assert secret not in text
    for phone in phones:
        assert phone.removeprefix("+7") not in text
