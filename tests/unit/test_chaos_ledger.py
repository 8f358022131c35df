"""The accounting of the chaos run detects lost webhooks, double calls, lost proofs and stuck idempotency keys."""

import math
import time
from typing import Any

import pytest

from benchmarks.chaos_ledger import Attempt, Delivered, Failure, Ledger, Response, Right
from benchmarks.chaos_workers import find_tracebacks

PHONE, ID, KEY = "+79020000001", "vrf_0a1", "key"


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
def test_an_end_that_was_answered_and_delivered_is_no_lost_webhook(end: str) -> None:
    assert list(ledger_of("created", end, end=end).lost_webhooks()) == []


@pytest.mark.parametrize(
    ("events", "end"),
    [
        (["created"], None),  # it was not ended, so it must have expired
        (["created", "expired"], "verified"),
        (["verified"], "verified"),
        (["created", "created", "expired"], None),
        (["created", "verified", "expired"], "verified"),
    ],
)
def test_a_missing_or_repeated_event_is_reported_as_lost(events: list[str], end: str | None) -> None:
    assert list(ledger_of(*events, end=end).lost_webhooks())


def test_a_verification_whose_end_is_unknown_needs_one_end_event_of_any_kind() -> None:
    ledger = ledger_of("created", "canceled")
    ledger.reported[ID].is_unsure = True
    assert list(ledger.lost_webhooks()) == []

    del ledger.events["msg_1"]
    assert list(ledger.lost_webhooks())


def test_events_of_an_unknown_verification_are_explained_only_by_an_unanswered_start() -> None:
    ledger = ledger_of("created", created=False)

    assert list(ledger.unexplained_events(set()))
    assert list(ledger.unexplained_events({PHONE})) == []
    assert ledger.counts["events of starts without a response"] == 1


def test_a_second_call_for_one_start_and_a_call_without_a_start_are_reported() -> None:
    ledger = Ledger()
    ledger.note_start(PHONE, KEY, "initiated", [1.0])
    ledger.note_calls({PHONE: 1})
    assert ledger.placed_twice == []

    ledger.note_calls({PHONE: 2})
    ledger.attempts["/verify/start", KEY].append(Attempt(0.5, 4.0, "201 pending", "http://worker"))
    ledger.note_start(PHONE, KEY, "initiated", [1.0, 3.5])
    _, twice = ledger.placed_twice
    assert "called at +0.0 s, +2.5 s" in twice
    assert "'201 pending' by http://worker from -0.5 to +3.0 s" in twice


def test_a_start_of_the_chaos_run_that_was_refused_is_reported() -> None:
    ledger = Ledger()
    ledger.note_start(PHONE, KEY, "refused", [1.0])
    assert ledger.not_verified


def right(answer: str, *, request: str = "key", **facts: Any) -> Right:  # noqa: ANN401 - those of the answer
    verified_id = ID if answer == "200 verified" else None
    defaults = {"began": 0.0, "verified_id": verified_id, "has_key": True, "is_unsure": False}
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


def test_a_repeated_request_may_verify_again_but_a_different_request_may_not() -> None:
    assert evidence(right("200 verified"), right("200 verified")) == {}
    assert evidence(right("200 verified"), right(USED, request="other")) == {}
    assert evidence(right("200 verified"), right("200 verified", request="other")) == {"verified twice": 1}


def test_a_code_that_verifies_another_verification_is_reported() -> None:
    assert evidence(right("200 verified", verified_id="vrf_0b2")) == {"not verified": 1}


@pytest.mark.parametrize("answer", ["404 verification-not-found", "200 pending", USED])
def test_a_correct_code_that_did_not_verify_is_reported_unless_excused(answer: str) -> None:
    assert evidence(right(answer)) == {"not verified": 1}
    assert evidence(right(answer, excused="too late")) == {}


@pytest.mark.parametrize(
    ("created_at", "checked_at", "excused"),
    [
        (99.5, 200, 1),  # not replicated yet
        (104, 200, 1),
        (98, 200, 0),
        (106, 200, 0),
        (50, 104, 1),
        (50, 106, 0),
        (304, 304, 0),  # nothing could be lost
    ],
)
def test_a_code_that_did_not_verify_is_counted_apart_if_redis_failed_over_meanwhile(
    created_at: float, checked_at: float, excused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Failure("primary killed", 100, ended=103, may_lose_writes=True)
    ledger = Ledger(failures=[killed, Failure("primary demoted", 300, ended=303)])
    ledger.of(ID, PHONE).created_at.append(created_at)
    monkeypatch.setattr(time, "monotonic", lambda: checked_at + 1)

    ledger.note_right(right("404 verification-not-found", began=checked_at))

    assert (len(ledger.lost_in_failovers), len(ledger.not_verified)) == (excused, 1 - excused)


def test_refusals_and_times_are_attributed_to_the_failure_of_redis_before_them() -> None:
    ledger = Ledger(failures=[Failure("primary killed", 100, ended=103), Failure("primary paused", 200)])
    refused = [Response(at, 1.0, is_refusal=True) for at in (99, 101, 102.5)]
    ledger.responses = [*refused, Response(150, 0.2, is_refusal=False), Response(250, 0.3, is_refusal=False)]

    assert ledger.seconds_of_refusals() == [2.5, 0]
    assert ledger.failures[1].ended == math.inf
    assert ledger.times(in_failures=True) == [0.3, 1, 1]
    assert ledger.times(in_failures=False) == [0.2, 1]


def test_a_proof_is_lost_if_a_repeated_idempotency_key_is_answered_already_used() -> None:
    assert evidence(right(USED, is_unsure=True)) == {"lost proofs": 1}
    assert evidence(right(USED, is_unsure=True, has_key=False)) == {}
    assert evidence(right("200 verified", request="first"), right(USED, is_unsure=True)) == {}


def test_a_repeated_start_that_returns_another_verification_is_reported() -> None:
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
        # The attempt that was cut off may hold the claim, even if a later one was answered.
        ([Attempt(0, 1, is_answered=False), Attempt(1, 2, "503"), Attempt(8, 8.1, is_held=True)], 0),
        ([Attempt(0, 1, is_answered=False), Attempt(1, 6, "503"), Attempt(9.5, 9.6, is_held=True)], 1),
        # Another attempt is still being processed.
        ([Attempt(0, 1, "503"), Attempt(2, 20, "201"), Attempt(9, 9.1, is_held=True)], 0),
    ],
)
def test_an_idempotency_key_that_stays_in_progress_without_a_running_request_is_reported(
    attempts: list[Attempt], found: int
) -> None:
    ledger = Ledger()
    ledger.attempts["/verify/start", "key"] += attempts

    assert len(list(ledger.held_claims(after_answer=3, after_silence=8))) == found


@pytest.mark.parametrize(("killed", "found"), [("http://a", 0), ("http://b", 1)])
def test_a_worker_that_ended_after_its_answer_may_not_have_released_the_key(killed: str, found: int) -> None:
    ledger = Ledger(worker_ends=[(1.5, killed)])
    ledger.attempts["/verify/start", "key"] += [Attempt(0, 1, "503", "http://a"), Attempt(6, 6.1, is_held=True)]

    held = list(ledger.held_claims(after_answer=3, after_silence=8))

    assert len(held) == found


def test_a_key_that_stays_in_progress_is_reported_with_its_workers_and_the_disturbances_nearby() -> None:
    ledger = Ledger(disturbances=[(2, "primary killed")])
    ledger.attempts["/verify/start", "key"] += [
        Attempt(0, 1, "503", "http://a"),
        Attempt(6, 6.1, "409", "http://b", is_held=True),
    ]

    (evidence,) = ledger.held_claims(after_answer=3, after_silence=8)

    assert evidence == (
        "/verify/start key: in progress 5.0 s after the last request ended: "
        "'503' by http://a from -6.0 to -5.0 s, '409' by http://b from +0.0 to +0.1 s; primary killed +1.0 s"
    )


def test_a_traceback_over_several_lines_is_found_with_its_error() -> None:
    log = """\
{"event": "request.failed", "exception": "Traceback ..."}
INFO:     started
Traceback (most recent call last):
  File "app/main.py", line 1, in serve
    raise ValueError
ValueError: no
INFO:     ended
"""
    assert list(find_tracebacks(log)) == [
        '{"event": "request.failed", "exception": "Traceback ..."}',
        'Traceback (most recent call last): File "app/main.py", line 1, in serve raise ValueError ValueError: no',
    ]
