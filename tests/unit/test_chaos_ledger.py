"""The accounting of the chaos run notices what it is there to notice."""

import pytest

from benchmarks.chaos_ledger import Delivered, Ledger

PHONE, ID = "+79020000001", "vrf_0a1"


def ledger_of(*events: str, created: bool = True, end: str | None = None) -> Ledger:
    ledger = Ledger()
    if created:
        ledger.note_created(ID, PHONE)
    if end:
        ledger.note_end(ID, PHONE, end)
    for number, kind in enumerate(events):
        ledger.events[f"msg_{number}"] = Delivered(f"verification.{kind}", ID, PHONE, 1)
    return ledger


@pytest.mark.parametrize("end", ["verified", "locked", "canceled"])
def test_an_end_that_was_told_and_delivered_adds_up(end: str) -> None:
    assert list(ledger_of("created", end, end=end).lost_webhooks()) == []


@pytest.mark.parametrize(
    ("events", "end"),
    [
        (["created"], None),  # nobody ended it, so it expired
        (["created", "expired"], "verified"),
        (["verified"], "verified"),
        (["created", "created", "expired"], None),
        (["created", "verified", "expired"], "verified"),
    ],
)
def test_what_is_missing_or_told_twice_is_found(events: list[str], end: str | None) -> None:
    assert list(ledger_of(*events, end=end).lost_webhooks())


def test_an_end_that_nobody_is_sure_of_may_be_any_and_must_be_one() -> None:
    ledger = ledger_of("created", "canceled")
    ledger.told[ID].is_unsure = True
    assert list(ledger.lost_webhooks()) == []

    del ledger.events["msg_1"]
    assert list(ledger.lost_webhooks())


def test_events_of_a_verification_that_nobody_was_told_of_need_a_start_that_nobody_was_answered() -> None:
    ledger = ledger_of("created", created=False)

    assert list(ledger.unexplained_events(set()))
    assert list(ledger.unexplained_events({PHONE})) == []
    assert ledger.counts["events of starts that nobody was answered"] == 1


def test_two_calls_for_one_start_and_calls_of_no_start_are_found() -> None:
    ledger = Ledger()
    ledger.note_start(PHONE, "initiated", 1)
    ledger.note_calls({PHONE: 1})
    assert ledger.placed_twice == []

    ledger.note_calls({PHONE: 2})
    ledger.note_start(PHONE, "initiated", 2)
    assert len(ledger.placed_twice) == 2


def test_a_call_of_a_start_that_was_refused_is_found() -> None:
    ledger = Ledger()
    ledger.note_start(PHONE, "refused", 1)
    assert ledger.not_verified
