"""The order in which channels are tried for a call."""

import pytest

from app.verification.channels import Channel
from app.verification.model import CallStatus
from app.verification.operators import operator_of
from app.verification.phone import Phone
from app.verification.ports import CallHistory
from app.verification.routing import route

VOICE, FLASH, REVERSE = Channel.VOICE, Channel.FLASH_CALL, Channel.REVERSE_CALL
ALL = (VOICE, FLASH, REVERSE)
MTS, OTHER = Phone("+79101234567"), Phone("+79031234567")
NOTHING = CallHistory(None, ())


@pytest.mark.parametrize(
    ("phone", "operator"),
    [
        ("+79101234567", "mts"),
        ("+79191234567", "mts"),
        ("+79851234567", "mts"),
        ("+79031234567", "beeline"),
        ("+79201234567", "megafon"),
        ("+79001234567", "t2"),
        ("+79770000000", None),
    ],
)
def test_the_operator_is_found_by_the_numbering_plan(phone: str, operator: str | None) -> None:
    assert operator_of(Phone(phone)) == operator


def test_the_default_order_is_that_of_the_settings() -> None:
    assert route(ALL, phone=MTS, history=NOTHING, operator_channels={}) == ALL


def test_the_channel_configured_for_the_operator_comes_first() -> None:
    rules = {"mts": REVERSE}

    assert route(ALL, phone=MTS, history=NOTHING, operator_channels=rules) == (REVERSE, VOICE, FLASH)
    assert route(ALL, phone=OTHER, history=NOTHING, operator_channels=rules) == ALL


def test_the_operator_reported_by_the_provider_overrides_the_numbering_plan() -> None:
    rules = {"mts": REVERSE}

    assert route(ALL, phone=OTHER, history=CallHistory("mts", ()), operator_channels=rules)[0] is REVERSE
    assert route(ALL, phone=MTS, history=CallHistory("beeline", ()), operator_channels=rules)[0] is VOICE


def test_a_channel_that_is_not_allowed_is_not_used_for_its_operator() -> None:
    assert route((VOICE,), phone=MTS, history=NOTHING, operator_channels={"mts": REVERSE}) == (VOICE,)


@pytest.mark.parametrize("status", [CallStatus.NO_ANSWER, CallStatus.BUSY, CallStatus.FAILED])
def test_after_an_unanswered_call_another_channel_comes_first(status: CallStatus) -> None:
    assert route(ALL, phone=OTHER, history=CallHistory(None, ((VOICE, status),)), operator_channels={}) == (
        FLASH,
        REVERSE,
        VOICE,
    )


@pytest.mark.parametrize("status", [CallStatus.INITIATED, CallStatus.ANSWERED, CallStatus.COMPLETED])
def test_after_any_other_call_the_same_channel_is_used_again(status: CallStatus) -> None:
    assert route(ALL, phone=OTHER, history=CallHistory(None, ((VOICE, status),)), operator_channels={}) == ALL


def test_when_every_channel_was_unanswered_the_default_order_is_used_again() -> None:
    history = CallHistory(None, tuple((channel, CallStatus.NO_ANSWER) for channel in ALL))

    assert route(ALL, phone=OTHER, history=history, operator_channels={}) == ALL
