"""The commands for dead letters: ``events failed`` and ``events resend``."""

import asyncio
import json
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.store.scripts import ScriptRunner
from app.store.webhooks import RedisOutbox
from tests.redis_commands import flush, open_commands
from tests.webhook_events import add_events


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str) -> None:
    monkeypatch.chdir(tmp_path)  # where .env is looked for
    asyncio.run(flush(redis_url))


@pytest.fixture
def dead_letter(redis_url: str) -> str:
    """Make an event a dead letter, and return its id."""

    async def give_up() -> str:
        async with open_commands(redis_url) as redis:
            await add_events(redis, type="call.status_changed", call="busy")
            outbox = RedisOutbox(ScriptRunner(redis, timeout=5))
            (taken,) = await outbox.take(1)
            await outbox.set_aside(taken, attempts=7, error="status 500", pause=None)
            return taken.event.id

    return asyncio.run(give_up())


def run(redis_url: str, *arguments: str) -> tuple[int, str]:
    environment = {"MODE": "sandbox", "REDIS_URL": redis_url, "REDIS_TIMEOUT_SECONDS": "20"}
    result = CliRunner().invoke(cli, ["events", *arguments], env=environment)
    return result.exit_code, result.output


def test_failed_events_are_shown_as_a_table(redis_url: str, dead_letter: str) -> None:
    code, output = run(redis_url, "failed")

    assert code == 0
    for fact in (dead_letter, "call.status_changed", "shop", "7", "status 500"):
        assert fact in output.splitlines()[1]
    assert "9001234567" not in output


def test_failed_events_are_shown_as_json(redis_url: str, dead_letter: str) -> None:
    code, output = run(redis_url, "failed", "--json")
    (letter,) = json.loads(output)

    assert code == 0
    assert datetime.fromisoformat(letter.pop("given_up_at")).tzinfo
    assert letter == {
        "id": dead_letter,
        "type": "call.status_changed",
        "client": "shop",
        "verification_id": "vrf_0a11b22c33d44e55f667788",
        "attempts": 7,
        "error": "status 500",
        "happened_at": "2026-01-31T09:00:00Z",
    }


def test_without_failed_events_the_output_is_empty(redis_url: str) -> None:
    assert run(redis_url, "failed") == (0, "none\n")
    assert run(redis_url, "failed", "--json") == (0, "[]\n")


def test_one_event_can_be_resent_by_its_id(redis_url: str, dead_letter: str) -> None:
    assert run(redis_url, "resend", dead_letter) == (0, f"The event {dead_letter} is sent again.\n")
    assert run(redis_url, "resend", dead_letter) == (1, f"There is no event {dead_letter} that was given up.\n")


@pytest.mark.usefixtures("dead_letter")
def test_all_events_can_be_resent(redis_url: str) -> None:
    assert run(redis_url, "resend", "--all") == (0, "1 event is sent again.\n")
    assert run(redis_url, "resend", "--all") == (0, "0 events are sent again.\n")


@pytest.mark.usefixtures("dead_letter")
@pytest.mark.parametrize("arguments", [[], ["msg_0a11b22c33d44e55f667788-1", "--all"]])
def test_resend_takes_either_an_id_or_all(redis_url: str, arguments: list[str]) -> None:
    code, _ = run(redis_url, "resend", *arguments)

    assert code == 2
    assert len(json.loads(run(redis_url, "failed", "--json")[1])) == 1
