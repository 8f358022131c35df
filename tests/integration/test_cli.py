"""The commands, run in this process: confirmation prompts, output for people, JSON output and error messages."""

import asyncio
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import typer
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from typer.testing import CliRunner, Result

from app.cli import cli
from app.cli.call import _check, _follow
from app.container import open_container
from app.sandbox.embedded import EmbeddedServer
from app.sandbox.network import VirtualNetwork
from app.store.scripts import ScriptRunner
from app.store.stats import RedisStats
from app.tokens import generate_keys
from app.verification.channels import Channel
from app.verification.domain_events import (
    BalanceChanged,
    CallAsked,
    CallEnded,
    CallPlaced,
    Segment,
    VerificationSucceeded,
)
from app.verification.model import CallStatus
from app.verification.start import StartRequest
from app.verification.stats import CallPrices
from tests.integration.conftest import sandbox_settings
from tests.redis_commands import open_commands

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
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where .env is looked for
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # where running sandboxes are


def run(*arguments: str, answer: str = "", **environment: str) -> Result:
    return CliRunner().invoke(cli, arguments, input=answer, env={"REDIS_TIMEOUT_SECONDS": "20", **environment})


def test_call_asks_for_confirmation_and_shows_the_price(redis_url: str) -> None:
    done = run("call", PHONE, answer="n\n", REDIS_URL=redis_url, CALL_PRICE_RUB="4.50", **PRODUCTION)

    assert done.exit_code == 1
    assert "Call +7900•••4567 for about 4.50 RUB (CALL_PRICE_RUB)? [y/N]" in done.output
    assert "Nobody was called." in done.output


def test_call_reports_that_the_provider_cannot_be_reached(redis_url: str) -> None:
    done = run("call", PHONE, "--yes", REDIS_URL=redis_url, **PRODUCTION)

    assert (done.exit_code, done.output) == (1, "The provider could not be reached.\n")


def test_forget_asks_for_confirmation_before_it_erases(redis_url: str) -> None:
    done = run("forget", PHONE, answer="n\n", REDIS_URL=redis_url, **PRODUCTION)

    assert done.exit_code == 1
    assert "Erase all that is stored about +7900•••4567? [y/N]" in done.output
    assert "Nothing was erased." in done.output


def test_forget_reports_what_it_erased_as_json(redis_url: str) -> None:
    done = run("forget", "+79031112233", "--yes", "--json", REDIS_URL=redis_url, **PRODUCTION)

    nothing = dict.fromkeys(("verifications", "calls", "events", "answers", "attempts"), 0)
    assert json.loads(done.stdout) == {"phone": False, **nothing}


def test_forget_requires_secret_key(redis_url: str) -> None:
    done = run("forget", PHONE, "--yes", MODE="sandbox", REDIS_URL=redis_url)

    assert "SECRET_KEY is missing" in str(done.exception)


def test_doctor_prints_json(redis_url: str) -> None:
    done = run("doctor", "--json", MODE="sandbox", REDIS_URL=redis_url, SANDBOX_BALANCE_RUB="50")
    report = json.loads(done.stdout)

    assert (done.exit_code, report["ok"]) == (0, True)
    assert [check for check in report["checks"] if check["check"] == "balance"] == [
        {
            "check": "balance",
            "result": "warning",
            "message": "50.00 RUB, below WARN_BALANCE_RUB (100)",
            "advice": "Top the account up in Plusofon's cabinet.",
        }
    ]


def test_doctor_reports_only_the_settings_when_they_are_wrong() -> None:
    done = run("doctor", "--json")
    report = json.loads(done.stdout)

    assert (done.exit_code, report["ok"]) == (2, False)
    assert {check["check"] for check in report["checks"]} == {"settings"}
    assert len(report["checks"]) == 6


def test_stats_prints_a_table(redis_url: str) -> None:
    done = run("stats", MODE="sandbox", REDIS_URL=redis_url)

    assert done.exit_code == 0
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[1:]] == [
        *("verifications", "calls placed", "calls ended", "calls refused", "limits hit", "wrong codes", "spend"),
        "balance fell",
    ]


@pytest.mark.parametrize(
    ("day", "message"),
    [
        ("yesterday", "must be a day such as 2026-01-31"),
        ("2020-01-01", "only the last 400 days are kept"),
        ("2999-01-01", "must not be after today"),
    ],
)
def test_stats_rejects_a_day_that_is_not_kept(redis_url: str, day: str, message: str) -> None:
    done = run("stats", "--day", day, MODE="sandbox", REDIS_URL=redis_url)

    assert done.exit_code == 2
    assert message in done.output


def test_stats_shows_an_earlier_day(redis_url: str) -> None:
    day = str(datetime.now(UTC).date() - timedelta(days=2))

    done = run("stats", "--day", day, "--json", MODE="sandbox", REDIS_URL=redis_url)

    report = json.loads(done.stdout)
    assert (report["first_day"], report["last_day"], report["tz"]) == (day, day, "UTC")


async def add_counts(redis_url: str, zone: str) -> None:
    """Count two answered calls of a shop and a busy one of a bank."""
    prices, unanswered = dict.fromkeys(Channel, Decimal(3)), dict.fromkeys(Channel, Decimal("0.3125"))
    async with open_commands(redis_url) as redis:
        await redis.flushall()
        stats = RedisStats(
            ScriptRunner(redis, timeout=5),
            prices=CallPrices(answered=prices, unanswered=unanswered),
            zone=ZoneInfo(zone),
            count_calls=lambda _: None,
        )
        shop, bank = Segment("shop", Channel.VOICE, "mts"), Segment("bank", Channel.VOICE, "t2")
        for segment, status in ((shop, CallStatus.COMPLETED), (shop, CallStatus.COMPLETED), (bank, CallStatus.BUSY)):
            for event in (CallAsked(segment), CallPlaced(segment, CallStatus.INITIATED), CallEnded(segment, status)):
                stats.observe(event)
        stats.observe(VerificationSucceeded(shop))
        stats.observe(BalanceChanged(Decimal("-6.50")))
        await stats.aclose()


def test_stats_shows_the_spend_of_each_client(redis_url: str) -> None:
    asyncio.run(add_counts(redis_url, "Europe/Moscow"))
    settings = {"MODE": "sandbox", "REDIS_URL": redis_url, "STATS_TIMEZONE": "Europe/Moscow"}
    month = f"{datetime.now(ZoneInfo('Europe/Moscow')):%Y-%m}"

    table = run("stats", "--by", "client", "--month", month, **settings)
    assert table.stdout.splitlines()[1:] == [
        "client  asked  placed  answered  verified  conversion  spend_rub",
        "bank        1       1         0         0          0%     0.3125",
        "shop        2       2         2         1         50%       6.00",
        "total       3       3         2         1         33%     6.3125",
        "balance fell      6.50   RUB",
    ]
    by_csv = run("stats", "--by", "client", "--by", "operator", "--month", month, "--csv", **settings)
    assert by_csv.stdout.splitlines() == [
        "client,operator,asked,started,placed,unconfirmed,answered,busy,no_answer,failed,verified,conversion,spend_rub",
        "bank,t2,1,0,1,0,0,1,0,0,0,0.0,0.3125",
        "shop,mts,2,0,2,0,2,0,0,0,1,0.5,6.00",
    ]
    total = run("stats", "--csv", **settings)
    assert total.stdout.splitlines()[1] == "3,0,3,0,2,1,0,0,1,0.3333,6.3125"
    other_zone = run("stats", "--tz", "Asia/Vladivostok", "--by", "hour", "--json", **settings)
    report = json.loads(other_zone.stdout)
    assert (report["tz"], report["total"]["spend_rub"]) == ("Asia/Vladivostok", 6.3125)
    assert [row["group"]["hour"].endswith(":00+10:00") for row in report["rows"]] == [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--month", "2026-13"), "must be a month such as 2026-01"),
        (("--month", "2026-01", "--day", "2026-01-01"), "--month: leave it out"),
        (("--to", "2026-01-01"), "--from: is required beside the last day"),
        (("--from", "2026-01-02", "--to", "2026-01-01"), "--to: must not be before the first day"),
        (("--tz", "Moscow/Europe"), "must be a time zone that this machine knows"),
        (("--by", "phone"), "is not one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_stats_explains_what_is_wrong_with_its_options(redis_url: str, options: tuple[str, ...], message: str) -> None:
    done = run("stats", *options, MODE="sandbox", REDIS_URL=redis_url)

    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [("call", "123", "--yes"), ("forget", "12", "--yes"), ("guard", "lift", "+7900"), ("guard", "lift", "+78001234")],
    ids=" ".join,
)
def test_an_invalid_phone_or_range_is_a_usage_error(redis_url: str, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, MODE="sandbox", REDIS_URL=redis_url)

    assert done.exit_code == 2
    assert "Invalid value" in done.output


@pytest.mark.parametrize("spelling", ["+79161234", "79161234", "9161234", "8 (916) 123-4", "+7 916 123-45-67"])
def test_a_range_is_accepted_in_any_spelling_of_a_phone_number(redis_url: str, spelling: str) -> None:
    done = run("guard", "lift", spelling, MODE="sandbox", REDIS_URL=redis_url)

    assert (done.exit_code, done.output) == (1, "The range +79161234 is not blocked.\n")


@pytest.fixture
def silent_redis() -> Iterator[str]:
    """Return the URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.standalone  # each address is that of one server
@pytest.mark.parametrize("command", [("stats",), ("call", PHONE)], ids=" ".join)
def test_a_command_explains_why_redis_does_not_work(
    redis_url: str, silent_redis: str, command: tuple[str, ...]
) -> None:
    sentences = {
        "redis://127.0.0.1:1": "Redis is not reached. ",
        "redis://no-such-host.invalid": "Redis is not reached. ",
        redis_url.replace("unix://", "unix://nobody:made-up@"): "Redis refuses the user name or the password. ",
        silent_redis: "Redis does not answer in time. ",
    }
    for url, sentence in sentences.items():
        done = run(*command, MODE="sandbox", REDIS_URL=url, REDIS_TIMEOUT_SECONDS="0.3")

        assert done.exit_code == 1
        assert done.output.startswith(sentence)
        assert "made-up" not in done.output


def test_a_command_explains_that_redis_is_a_replica(redis_url: str) -> None:
    with EmbeddedServer() as server, Redis.from_url(server.url) as redis:
        redis.replicaof("127.0.0.1", "1")
        done = run("call", PHONE, MODE="sandbox", REDIS_URL=server.url)

    assert done.exit_code == 1
    assert "Let REDIS_URL name the primary." in done.output


def test_a_command_explains_that_redis_is_out_of_memory() -> None:
    with EmbeddedServer() as server, Redis.from_url(server.url) as redis:
        redis.config_set("maxmemory", "1")
        done = run("call", PHONE, MODE="sandbox", REDIS_URL=server.url)

    assert (done.exit_code, done.output) == (1, "Redis is out of memory.\n")


def test_a_command_explains_that_the_redis_user_lacks_a_permission_inside_a_script() -> None:
    with EmbeddedServer() as server, Redis.from_url(server.url) as redis:
        redis.acl_setuser("default", enabled=True, nopass=True, commands=["-set"])
        done = run("call", PHONE, MODE="sandbox", REDIS_URL=server.url)

    assert done.exit_code == 1
    assert done.output.startswith("Redis refused: its user lacks a right.")


def test_doctor_warns_of_an_unknown_setting(redis_url: str) -> None:
    Path(".env").write_text("LIMIT_CALLS_PER_DY=5\n", encoding="utf-8")

    done = run("doctor", MODE="sandbox", REDIS_URL=redis_url)

    assert done.exit_code == 0
    assert "! settings           LIMIT_CALLS_PER_DY is no setting" in done.output
    assert "→ Write LIMIT_CALLS_PER_DAY, if that is meant." in done.output


async def test_call_compares_what_was_heard_with_the_code(
    redis: AsyncRedis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = VirtualNetwork(pace=0.01)
    request = StartRequest(client="command-line", phone=PHONE, purpose="login", channels=(Channel.VOICE,))
    async with open_container(sandbox_settings(redis_url), network) as container:
        service = container.service
        placed = (await service.start(request)).verification
        last = await _follow(service, placed, timeout=5, interval=0.01)
        assert last.latest_call
        assert last.latest_call.state.status is CallStatus.COMPLETED
        for heard in (None, "no idea", str((int(network.calls_of(PHONE)[-1].heard or "") + 1) % 1_000_000).zfill(6)):
            with pytest.raises(typer.Exit):
                await _check(service, last, heard)
        await _check(service, last, network.calls_of(PHONE)[-1].heard)

    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "No code was heard.",
        "That is no code: a code is 4 to 6 digits.",
        "That is not the code that was to be spoken.",
    ]
    assert output.out.endswith("That is the code: calls arrive, and what is heard verifies.\n")
