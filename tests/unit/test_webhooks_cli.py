"""The commands over dead letters."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import pytest
from typer.testing import CliRunner

from app.verification.outbox import DeadLetter, DeadLetters
from app.webhooks.cli import make_events_cli
from tests.unit.test_webhooks_endpoint import EVENT

_T = TypeVar("_T")
LETTER = DeadLetter(event=EVENT, attempts=7, error="status 500", died_at=datetime(2026, 2, 1, 8, 0, tzinfo=UTC))


class FakeDeadLetters:
    def __init__(self) -> None:
        self.letters = [LETTER]

    async def dead_letters(self) -> Sequence[DeadLetter]:
        return self.letters

    async def resend(self, event_id: str) -> bool:
        before = len(self.letters)
        self.letters = [letter for letter in self.letters if letter.event.id != event_id]
        return len(self.letters) < before

    async def resend_all(self) -> int:
        count, self.letters = len(self.letters), []
        return count


class AskFake:
    def __init__(self, dead: DeadLetters) -> None:
        self.dead = dead

    def __call__(self, question: Callable[[DeadLetters], Awaitable[_T]]) -> _T:
        async def ask() -> _T:
            return await question(self.dead)

        return asyncio.run(ask())


@pytest.fixture
def dead() -> FakeDeadLetters:
    return FakeDeadLetters()


def run(dead: FakeDeadLetters, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(make_events_cli(AskFake(dead)), arguments)
    return result.exit_code, result.output


def test_what_failed_is_a_table(dead: FakeDeadLetters) -> None:
    code, output = run(dead, "failed")

    assert code == 0
    for fact in (EVENT.id, EVENT.type, "shop", "7", "2026-02-01 08:00:00", "status 500"):
        assert fact in output.splitlines()[1]
    assert "9001234567" not in output


def test_what_failed_is_json(dead: FakeDeadLetters) -> None:
    code, output = run(dead, "failed", "--json")

    assert code == 0
    assert json.loads(output) == [
        {
            "id": "msg_1769850000123-0",
            "type": "call.status_changed",
            "client": "shop",
            "verification_id": "vrf_0a11b22c33d44e55f667788",
            "attempts": 7,
            "error": "status 500",
            "happened_at": "2026-01-31T09:00:00+00:00",
            "given_up_at": "2026-02-01T08:00:00+00:00",
        }
    ]


def test_nothing_failed(dead: FakeDeadLetters) -> None:
    dead.letters = []

    assert run(dead, "failed") == (0, "none\n")
    assert run(dead, "failed", "--json") == (0, "[]\n")


def test_one_is_sent_again_by_its_id(dead: FakeDeadLetters) -> None:
    assert run(dead, "resend", EVENT.id) == (0, f"The event {EVENT.id} is sent again.\n")
    assert run(dead, "resend", EVENT.id) == (1, f"There is no event {EVENT.id} that was given up.\n")


def test_all_are_sent_again(dead: FakeDeadLetters) -> None:
    assert run(dead, "resend", "--all") == (0, "1 event is sent again.\n")
    assert run(dead, "resend", "--all") == (0, "0 events are sent again.\n")


@pytest.mark.parametrize("arguments", [[], [EVENT.id, "--all"]])
def test_it_is_either_one_or_all(dead: FakeDeadLetters, arguments: list[str]) -> None:
    code, _ = run(dead, "resend", *arguments)

    assert code == 2
    assert dead.letters == [LETTER]
