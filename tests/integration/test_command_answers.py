"""What the commands ask before they cost or erase something, and what a script reads of them; in this process."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from app.cli import cli
from app.cli.call import _ask, _follow
from app.plusofon.sandbox import VirtualNetwork
from app.tokens import generate_keys
from app.verification.channel import Channel
from app.verification.model import CallStatus
from app.verification.service import StartRequest
from app.wiring import open_service
from tests.integration.conftest import sandbox_settings

PHONE = "+79001234567"
PRODUCTION = {
    "PLUSOFON_USER_ID": "7",
    "PLUSOFON_ACCESS_TOKEN": "made-up",
    "PLUSOFON_BASE_URL": "https://127.0.0.1:1",
    "SECRET_KEY": "a-made-up-secret-key-0123456789-0123456789",
    "API_KEYS": f"shop:{'0' * 64}",
    "TOKEN_KEYS": generate_keys(),
}


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Commands switch logs off for their process, which is this one here."""
    monkeypatch.chdir(tmp_path)  # where .env is looked for
    yield
    logging.disable(logging.NOTSET)


def run(*arguments: str, answer: str = "", **environment: str) -> Result:
    return CliRunner().invoke(cli, arguments, input=answer, env=environment)


def test_a_call_that_costs_money_is_asked_for_with_its_price(redis_url: str) -> None:
    done = run("call", PHONE, answer="n\n", REDIS_URL=redis_url, CALL_PRICE_RUB="4.50", **PRODUCTION)

    assert done.exit_code == 1
    assert "Call +7900•••4567 for about 4.50 RUB (CALL_PRICE_RUB)? [y/N]" in done.output
    assert "Nobody was called." in done.output


def test_a_call_that_the_provider_does_not_take_is_told(redis_url: str) -> None:
    done = run("call", PHONE, "--yes", REDIS_URL=redis_url, **PRODUCTION)

    assert (done.exit_code, done.output) == (1, "The provider could not be reached.\n")


def test_nothing_is_erased_before_it_is_asked(redis_url: str) -> None:
    done = run("forget", PHONE, answer="n\n", REDIS_URL=redis_url, **PRODUCTION)

    assert done.exit_code == 1
    assert "Erase all that is stored about +7900•••4567? [y/N]" in done.output
    assert "Nothing was erased." in done.output


def test_erasing_is_told_to_a_script(redis_url: str) -> None:
    done = run("forget", "+79031112233", "--yes", "--json", REDIS_URL=redis_url, **PRODUCTION)

    assert json.loads(done.stdout) == {"phone": False, "verifications": 0, "calls": 0, "events": 0, "answers": 0}


def test_nobody_can_be_forgotten_without_the_key_of_names(redis_url: str) -> None:
    done = run("forget", PHONE, "--yes", MODE="sandbox", REDIS_URL=redis_url)

    assert "SECRET_KEY is missing" in str(done.exception)


def test_the_doctor_speaks_json(redis_url: str) -> None:
    done = run("doctor", "--json", MODE="sandbox", REDIS_URL=redis_url, SANDBOX_BALANCE_RUB="50")
    told = json.loads(done.stdout)

    assert (done.exit_code, told["ok"]) == (0, True)
    assert [check for check in told["checks"] if check["check"] == "balance"] == [
        {
            "check": "balance",
            "result": "warning",
            "told": "50.00 RUB, below WARN_BALANCE_RUB (100)",
            "advice": "Top the account up in Plusofon's cabinet.",
        }
    ]


def test_the_doctor_tells_wrong_settings_before_it_asks_anybody() -> None:
    done = run("doctor", "--json")
    told = json.loads(done.stdout)

    assert (done.exit_code, told["ok"]) == (2, False)
    assert {check["check"] for check in told["checks"]} == {"settings"}
    assert len(told["checks"]) == 6


def test_a_days_statistics_are_a_table(redis_url: str) -> None:
    done = run("stats", MODE="sandbox", REDIS_URL=redis_url)

    assert done.exit_code == 0
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[1:]] == [
        *("verifications", "calls placed", "calls ended", "calls refused", "limits hit", "wrong codes", "spend")
    ]


@pytest.mark.parametrize("day", ["yesterday", "2020-01-01", "2999-01-01"])
def test_a_day_that_nobody_remembers_is_not_told_as_one_without_calls(redis_url: str, day: str) -> None:
    assert run("stats", "--day", day, MODE="sandbox", REDIS_URL=redis_url).exit_code == 2


async def test_what_was_heard_is_held_against_the_code(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = VirtualNetwork(pace=0.01)
    request = StartRequest(client="command-line", phone=PHONE, purpose="login", channels=(Channel.VOICE,))
    async with open_service(sandbox_settings(redis_url), network) as service:
        placed = (await service.start(request)).verification
        last = await _follow(service, placed, patience=5, every=0.01)
        assert last.latest_call
        assert last.latest_call.state.status is CallStatus.COMPLETED
        for heard in (None, "no idea", str((int(network.calls_of(PHONE)[-1].heard or "") + 1) % 1_000_000).zfill(6)):
            with pytest.raises(typer.Exit):
                await _ask(service, last, heard)
        await _ask(service, last, network.calls_of(PHONE)[-1].heard)

    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "No code was heard.",
        "That is no code: a code is 4 to 6 digits.",
        "That is not the code that was to be spoken.",
    ]
    assert told.out.endswith("That is the code: calls arrive, and what is heard verifies.\n")
