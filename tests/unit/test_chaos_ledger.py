"""The accounting of the chaos run notices what it is there to notice."""

from typing import Any

import pytest

from benchmarks.chaos_ledger import Attempt, Delivered, Ledger, Right

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
    assert ledger.counts["events of starts without a response"] == 1


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


def right(answer: str, *, request: str = "key", **facts: Any) -> Right:  # noqa: ANN401 - those of the answer
    verified_id = ID if answer == "200 verified" else None
    defaults = {"verified_id": verified_id, "has_key": True, "is_unsure": False}
    return Right(verification_id=ID, phone=PHONE, request=request, answer=answer, **{**defaults, **facts})


def evidence(*rights: Right) -> dict[str, int]:
    ledger = Ledger()
    for one in rights:
        ledger.note_right(one)
    found = {
        "not verified": ledger.not_verified,
        "verified twice": ledger.verified_twice,
        "lost proofs": ledger.lost_proofs,
    }
    return {name: len(lines) for name, lines in found.items() if lines}


USED = "409 verification-already-used"


def test_one_request_that_verifies_again_is_one_verification_and_two_requests_are_two() -> None:
    assert evidence(right("200 verified"), right("200 verified")) == {}
    assert evidence(right("200 verified"), right(USED, request="other")) == {}
    assert evidence(right("200 verified"), right("200 verified", request="other")) == {"verified twice": 1}


def test_a_code_that_verifies_another_verification_is_found() -> None:
    assert evidence(right("200 verified", verified_id="vrf_0b2")) == {"not verified": 1}


@pytest.mark.parametrize("answer", ["404 verification-not-found", "200 pending", USED])
def test_a_right_code_that_did_not_verify_is_found_unless_it_is_excused(answer: str) -> None:
    assert evidence(right(answer)) == {"not verified": 1}
    assert evidence(right(answer, excused="too late")) == {}


def test_a_proof_is_lost_if_its_key_is_repeated_and_the_code_was_used_unseen() -> None:
    assert evidence(right(USED, is_unsure=True)) == {"lost proofs": 1}
    assert evidence(right(USED, is_unsure=True, has_key=False)) == {}
    assert evidence(right("200 verified", request="first"), right(USED, is_unsure=True)) == {}


def test_a_repeated_start_that_is_another_verification_is_found() -> None:
    ledger = Ledger()
    ledger.note_repeated_start(PHONE, ID, ID)
    assert ledger.placed_twice == []

    ledger.note_repeated_start(PHONE, ID, "vrf_0b2")
    ledger.note_repeated_start(PHONE, ID, None)
    assert len(ledger.placed_twice) == 2


@pytest.mark.parametrize(
    ("attempts", "found"),
    [
        ([Attempt(0, 1, "503"), Attempt(3.9, 4, is_held=True)], 0),
        ([Attempt(0, 1, "503"), Attempt(4.1, 4.2, is_held=True)], 1),
        ([Attempt(0, 1, is_answered=False), Attempt(8.9, 9, is_held=True)], 0),
        ([Attempt(0, 1, is_answered=False), Attempt(9.1, 9.2, is_held=True)], 1),
        # The one that was cut off may be why, whatever was answered after it.
        ([Attempt(0, 1, is_answered=False), Attempt(1, 2, "503"), Attempt(8, 8.1, is_held=True)], 0),
        ([Attempt(0, 1, is_answered=False), Attempt(1, 6, "503"), Attempt(9.5, 9.6, is_held=True)], 1),
        # Somebody is at work.
        ([Attempt(0, 1, "503"), Attempt(2, 20, "201"), Attempt(9, 9.1, is_held=True)], 0),
    ],
)
def test_a_key_in_progress_with_nobody_at_work_is_found(attempts: list[Attempt], found: int) -> None:
    ledger = Ledger()
    ledger.attempts["/verify/start", "key"] += attempts

    assert len(list(ledger.held_claims(after_answer=3, after_silence=8))) == found
