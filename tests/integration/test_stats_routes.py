"""``GET /admin/stats``, through every layer: access, figures of real calls, and what is wrong with a request."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.settings import Settings
from tests.integration.conftest import run, sandbox_settings
from tests.waiting import eventually

SHOP, BANK, ADMIN = ({"Authorization": f"Bearer {name}"} for name in ("shop", "bank", "ops"))
PHONE = "+79161234567"  # of MTS


def keys(*names: str) -> dict[str, str]:
    return {"keys": ",".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in names)}


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return sandbox_settings(
        redis_url,
        channels=["voice", "flash_call"],
        api=keys("shop", "bank"),
        admin=keys("ops"),
        call={"price_rub": "3", "unanswered_prices_rub": "voice:0.30", "prices_rub": "flash_call:0.60"},
    )


async def read(api: httpx.AsyncClient, **query: str) -> dict[str, Any]:
    answer = await api.get("/admin/stats", params=query, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()
    return report


async def counted(api: httpx.AsyncClient, name: str, count: int, **query: str) -> dict[str, Any]:
    """Read until the total of a figure has been counted: within a second or two."""
    return await eventually(lambda: read(api, **query), lambda report: report["total"][name] >= count)


async def test_statistics_require_an_admin_key(redis: Redis, redis_url: str, network: VirtualNetwork) -> None:
    async def statuses(**settings: object) -> list[int]:
        async with run(create_app(sandbox_settings(redis_url, **settings), network)) as api:
            return [(await api.get("/admin/stats", headers=header)).status_code for header in ({}, SHOP, ADMIN)]

    assert await statuses(api=keys("shop"), admin=keys("ops")) == [401, 401, 200]
    assert await statuses(api=keys("shop")) == [401, 401, 401]
    assert await statuses() == [200, 200, 200]  # a sandbox without keys


async def test_statistics_show_the_calls_and_the_spend_of_each_client(
    api: httpx.AsyncClient, network: VirtualNetwork
) -> None:
    for key in ("same", "same"):  # the repetition of a request is no other call
        body = {"phone": PHONE}
        await api.post("/verify/start", json=body, headers={**SHOP, "Idempotency-Key": key})
    await api.post("/verify/start", json={"phone": PHONE}, headers=SHOP)  # too soon
    await api.post("/verify/start", json={"phone": str(MagicNumber.BUSY)}, headers=BANK)
    (call,) = network.calls_of(PHONE)
    await api.post("/verify/check", json={"phone": PHONE, "code": call.pin}, headers=SHOP)

    report = await counted(api, "answered", 1, by="client")
    report = await counted(api, "busy", 1, by="client")

    rows = {row["group"]["client"]: row for row in report["rows"]}
    figures = ("asked", "started", "placed", "answered", "busy", "verified", "conversion", "spend_rub")
    assert [rows["shop"][name] for name in figures] == [2, 1, 1, 1, 0, 1, 1.0, 3.0]
    assert [rows["bank"][name] for name in figures] == [1, 1, 1, 0, 1, 0, 0.0, 0.3]
    assert [report["total"][name] for name in figures] == [3, 2, 2, 1, 1, 1, 0.5, 3.3]
    assert report["limits"] == {"call_cooldown": 1}
    today = str(datetime.now(UTC).date())
    assert (report["first_day"], report["last_day"], report["tz"]) == (today, today, "UTC")


async def test_rows_are_grouped_by_all_that_was_asked_for(api: httpx.AsyncClient) -> None:
    await api.post("/verify/start", json={"phone": PHONE, "channels": ["flash_call"]}, headers=SHOP)
    await counted(api, "placed", 1)

    answer = await api.get("/admin/stats?by=operator&by=channel&by=hour&tz=Europe/Moscow", headers=ADMIN)

    (row,) = answer.json()["rows"]
    assert list(row["group"]) == ["operator", "channel", "hour"]
    assert (row["group"]["operator"], row["group"]["channel"]) == ("mts", "flash_call")
    assert datetime.fromisoformat(row["group"]["hour"]).utcoffset() == timedelta(hours=3)
    assert (row["placed"], row["spend_rub"]) == (1, 0.6)


@pytest.mark.parametrize(
    ("query", "pointer", "detail"),
    [
        ("by=phone", "#/by/0", "must be"),
        ("month=2026-1", "#/month", "has the wrong form"),
        ("month=2026-13", "#/month", "must be a month such as 2026-01"),
        ("month=2026-01&from=2026-01-01", "#/month", "leave it out"),
        ("to=2026-01-01", "#/from", "is required beside the last day"),
        ("from=2026-01-02&to=2026-01-01", "#/to", "must not be before the first day"),
        ("from=2020-01-01", "#/from", "only the last 400 days are kept"),
        ("from=9999-12-31", "#/from", "must not be after today"),
        ("from=yesterday", "#/from", "must be a valid date"),
        ("tz=Mars/Olympus", "#/tz", "must be a time zone that this machine knows"),
        ("tz=../../etc/passwd", "#/tz", "must be a time zone that this machine knows"),
    ],
)
async def test_a_wrong_parameter_is_explained(api: httpx.AsyncClient, query: str, pointer: str, detail: str) -> None:
    answer = await api.get(f"/admin/stats?{query}", headers=ADMIN)

    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (422, "validation-failed")
    (error,) = answer.json()["errors"]
    assert (error["pointer"], detail in error["detail"]) == (pointer, True), error
