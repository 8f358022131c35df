"""The operator's commands for single phones and days, as separate processes."""

import json
import re
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.e2e.test_commands import run

PHONE = "8 900 123-45-67"
SECRET_KEY = "a-secret-key-that-only-tests-use-0123456789"


@pytest.fixture
def sandbox(redis_url: str) -> dict[str, str]:
    return {"MODE": "sandbox", "REDIS_URL": redis_url, "SECRET_KEY": SECRET_KEY, "SANDBOX_PACE_SECONDS": "0.05"}


async def test_a_call_can_be_placed_followed_shown_counted_and_erased(
    redis: Redis, sandbox: dict[str, str], tmp_path: Path
) -> None:
    called = run("call", PHONE, cwd=tmp_path, **sandbox)
    assert (called.returncode, called.stderr) == (0, "")
    assert re.search(r"answered\n(?s:.*)completed\nThat is the code", called.stdout)
    found = re.match(r"vrf_[0-9a-f]{23}", called.stdout)
    assert found

    shown = json.loads(run("verifications", "show", found[0], "--json", cwd=tmp_path, **sandbox).stdout)
    assert (shown["status"], shown["phone"], shown["client"]) == ("verified", "+7900•••4567", "command-line")
    assert [(call["channel"], call["status"]) for call in shown["calls"]] == [("voice", "completed")]

    counted = json.loads(run("stats", "--json", cwd=tmp_path, **sandbox).stdout)
    total = counted["total"]
    assert (total["placed"], total["verified"], total["conversion"], total["spend_rub"]) == (1, 1, 1.0, 3.0)
    assert (total["answered"], total["busy"], total["no_answer"], total["failed"]) == (1, 0, 0, 0)

    erased = run("forget", PHONE, "--yes", cwd=tmp_path, **sandbox)
    assert (erased.returncode, erased.stderr) == (0, "")
    assert erased.stdout.startswith("Erased: 1 verifications with 1 calls, 0 events")
    assert not [key async for key in redis.scan_iter("pv3{???}:*")]


async def test_the_call_command_fails_if_the_call_is_not_answered(
    redis: Redis, sandbox: dict[str, str], tmp_path: Path
) -> None:
    busy = run("call", "+79000000001", cwd=tmp_path, **sandbox)

    assert (busy.returncode, busy.stderr) == (1, "No code was heard.\n")
    assert "busy" in busy.stdout
