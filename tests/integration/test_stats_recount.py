"""``stats --recount``: what was counted beside what the journal of attempts has, for calls of every kind."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from app.cli import cli
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.settings import Settings
from tests.integration.conftest import sandbox_settings
from tests.keys import stored
from tests.waiting import PATIENCE

PHONE, OTHER = "+79161234567", "+79031234567"
PRICES = {"price_rub": "3", "unanswered_prices_rub": "voice:0.30,reverse_call:0", "prices_rub": "flash_call:0.60"}


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return sandbox_settings(
        redis_url,
        channels=["voice", "flash_call", "reverse_call"],
        call=PRICES,
        plusofon={"timeout_seconds": 2, "connect_timeout_seconds": 1},  # of the call that gets no reply
    )


@pytest.fixture
def environment(redis_url: str, settings: Settings) -> dict[str, str]:
    assert settings.secret.key
    return {
        "MODE": "sandbox",
        "REDIS_URL": redis_url,
        "REDIS_TIMEOUT_SECONDS": "20",
        "SECRET_KEY": settings.secret.key.get_secret_value(),
        **{f"CALL_{name.upper()}": value for name, value in PRICES.items()},
    }


async def recount(environment: dict[str, str], *options: str, day: object = None) -> tuple[int, str]:
    """Run the command in a thread, for it has an event loop of its own."""
    arguments = ["stats", "--recount", str(day or datetime.now(UTC).date()), *options]
    done = await asyncio.to_thread(CliRunner().invoke, cli, arguments, env=environment)
    return done.exit_code, done.output


async def until_they_agree(environment: dict[str, str], condition: str) -> str:
    """Recount until a figure is reached: calls end, and are counted within a second."""
    deadline = time.monotonic() + PATIENCE
    while True:
        code, output = await recount(environment)
        if code == 0 and condition in output:
            return output
        assert time.monotonic() < deadline, output


async def start(api: httpx.AsyncClient, phone: str, channel: str) -> dict[str, Any]:
    answer = await api.post("/verify/start", json={"phone": phone, "channels": [channel]})
    body: dict[str, Any] = answer.json()
    return body


async def test_the_counts_agree_with_the_journal(
    api: httpx.AsyncClient, network: VirtualNetwork, environment: dict[str, str]
) -> None:
    await start(api, PHONE, "voice")
    (call,) = network.calls_of(PHONE)
    await api.post("/verify/check", json={"phone": PHONE, "code": call.pin})
    await start(api, str(MagicNumber.BUSY), "voice")
    await start(api, str(MagicNumber.REFUSED), "voice")
    await start(api, str(MagicNumber.NO_REPLY_PLACED), "voice")
    await start(api, OTHER, "flash_call")
    await start(api, "+79051234567", "reverse_call")

    output = await until_they_agree(environment, "0           1         0       3.30")

    assert [line.split() for line in output.splitlines()[1:]] == [
        ["client", "channel", "operator", "placed", "answered", "unanswered", "verified", "spend_rub"],
        *([*words, "1", "0", "0", "0", "0.60"] for words in both("flash_call", "beeline")),
        *([*words, "1", "0", "0", "0", "0.00"] for words in both("reverse_call", "beeline")),
        *([*words, "1", "1", "0", "1", "3.00"] for words in both("voice", "mts")),
        *([*words, "2", "0", "1", "0", "3.30"] for words in both("voice", "t2")),
        ["They", "agree."],
    ]
    _, by_channel = await recount(environment, "--by", "channel")
    assert [line.split() for line in by_channel.splitlines()[-3:-1]] == [
        ["voice", name, "3", "1", "1", "1", "6.30"] for name in ("counted", "journal")
    ]


def both(channel: str, operator: str) -> list[list[str]]:
    return [["sandbox", channel, operator, "counted"], ["sandbox", channel, operator, "journal"]]


async def test_a_loss_is_found(api: httpx.AsyncClient, redis: Redis, environment: dict[str, str]) -> None:
    await start(api, PHONE, "flash_call")
    await until_they_agree(environment, "They agree.")
    for key in await redis.keys(stored("{stats}:[hd]:*")):
        await redis.delete(key)

    code, output = await recount(environment, "--json")

    assert code == 1
    nothing = {"placed": 0, "answered": 0, "unanswered": 0, "verified": 0, "spend_rub": "0.00"}
    assert json.loads(output) == {
        "differing": 1,
        "rows": [
            {
                "client": "sandbox",
                "channel": "flash_call",
                "operator": "mts",
                "counted": nothing,
                "journal": nothing | {"placed": 1, "spend_rub": "0.60"},
            }
        ],
    }


async def test_a_recount_is_of_a_whole_day(environment: dict[str, str]) -> None:
    code, output = await recount(environment, "--by", "hour")

    assert (code, "a recount is by client, channel and operator" in output) == (2, True)


async def test_a_day_that_the_journal_does_not_have_is_refused(environment: dict[str, str], redis: Redis) -> None:
    code, output = await recount(environment, day=datetime.now(UTC).date() - timedelta(days=31))
    assert (code, "the journal is kept for 30 days" in output) == (2, True)

    code, output = await recount(environment | {"JOURNAL_DAYS": "0"})
    assert (code, "the journal is kept for 0 days" in output) == (2, True)
