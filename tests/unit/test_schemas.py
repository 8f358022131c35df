"""Answers are written without their models, and are what the models would be."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import TypeAdapter
from pydantic_core import to_json

from app.api import schemas
from app.api.schemas import CheckView, view_check, view_verification
from app.verification.channels import Channel
from app.verification.model import (
    Call,
    CallState,
    CallStatus,
    CheckResult,
    Locked,
    Status,
    Verification,
    Verified,
    Waiting,
    WrongCode,
)
from app.verification.phone import Phone

ID = "vrf_0a11b22c33d44e55f667788"


def verified(*, test: bool) -> Verified:
    return Verified(
        verification_id=ID,
        phone=Phone("+79001234567"),
        purpose="login",
        token="header.claims.signature",
        token_lifetime=timedelta(minutes=10),
        test=test,
    )


@pytest.mark.parametrize(
    "result",
    [
        verified(test=False),
        verified(test=True),
        WrongCode(verification_id=ID, checks_left=4),
        Waiting(verification_id=ID, checks_left=5),
        Locked(verification_id=ID, retry_after=42),
    ],
)
def test_the_answer_to_a_check_is_that_of_its_model(result: CheckResult) -> None:
    view = TypeAdapter[CheckView](CheckView)
    written = to_json(view_check(result))

    assert view.dump_json(view.validate_json(written)) == written


def verification(*calls: Call, test: bool = False, resend_at: datetime | None = None) -> Verification:
    now = datetime(2026, 1, 31, 9, tzinfo=UTC)
    return Verification(
        id=ID,
        client="shop",
        purpose="login",
        channel=Channel.VOICE,
        phone=Phone("+79001234567"),
        code_length=6,
        stored_status=Status.PENDING,
        calls_placed=len(calls),
        calls_left=1,
        checks_left=5,
        calls=calls,
        created_at=now,
        expires_at=now + timedelta(minutes=5, milliseconds=123),
        resend_at=resend_at,
        observed_at=now,
        test=test,
    )


def call(state: CallState, dial: Phone | None = None) -> Call:
    return Call(call_number=1, state=state, ref="1", dial=dial)


@pytest.mark.parametrize(
    "shown",
    [
        verification(),
        verification(call(CallState(CallStatus.RINGING)), resend_at=datetime(2026, 1, 31, 9, 1, tzinfo=UTC)),
        verification(call(CallState(CallStatus.ANSWERED, "NEW_WORD"))),
        verification(call(CallState(CallStatus.INITIATED), dial=Phone("+78005550100")), test=True),
    ],
)
def test_the_answer_with_a_verification_is_that_of_its_model(shown: Verification) -> None:
    written = to_json(view_verification(shown))

    assert schemas.Verification.model_validate_json(written).model_dump_json().encode() == written
