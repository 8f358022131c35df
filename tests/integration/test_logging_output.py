"""The log: one line per request, one format for all loggers, and no code, phone, token or key in any line."""

import asyncio
import hashlib
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from redis.asyncio import Redis

from app.api import middleware
from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.telemetry.logging import configure_logging
from app.tokens import generate_keys
from tests.integration.conftest import SECRET_KEY, run, sandbox_settings

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
    monkeypatch.setattr(middleware, "requests", structlog.get_logger())  # the previous logger keeps its stream
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
        plusofon={"timeout_seconds": 1, "connect_timeout_seconds": 0.5},
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


async def heard(api: httpx.AsyncClient, phone: str) -> str:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        calls = (await api.get(f"/sandbox/phones/{phone}/calls")).json()["calls"]
        if calls and (code := calls[-1]["heard"]):
            return str(code)
        await asyncio.sleep(0.01)
    raise TimeoutError(phone)


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
    code = await heard(api, PHONE)
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
    for secret in secrets:
        assert secret not in text
    for phone in phones:
        assert phone.removeprefix("+7") not in text
