"""Answers are written without their models, and are what the models would be; and which references are accepted."""

import json
import unicodedata
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from app.api import schemas
from app.api.schemas import CheckView, StartVerificationRequest, view_check, view_verification
from app.verification.channels import Channel
from app.verification.model import (
    Call,
    CallState,
    CallStatus,
    CheckResult,
    Consent,
    Locked,
    Status,
    Verification,
    Verified,
    Waiting,
    WrongCode,
)
from app.verification.phone import Phone

ID = "vrf_0a11b22c33d44e55f667788"


def verified(*, test: bool, reference: str | None = None) -> Verified:
    return Verified(
        verification_id=ID,
        phone=Phone("+79001234567"),
        purpose="login",
        token="header.claims.signature",
        token_lifetime=timedelta(minutes=10),
        test=test,
        reference=reference,
    )


@pytest.mark.parametrize(
    "result",
    [
        verified(test=False),
        verified(test=True, reference="order-1024"),
        WrongCode(ID, checks_left=4, reference="order-1024"),
        Locked(ID, retry_after=42, reference="order-1024"),
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
        replace(
            verification(), reference="Заказ 7", consent=Consent("2", datetime(2026, 1, 31, 8, 59, 30, 123_000, UTC))
        ),
    ],
)
def test_the_answer_with_a_verification_is_that_of_its_model(shown: Verification) -> None:
    written = to_json(view_verification(shown))

    assert schemas.Verification.model_validate_json(written).model_dump_json().encode() == written


def parsed(**fields: object) -> StartVerificationRequest:
    return StartVerificationRequest.model_validate_json(json.dumps({"phone": "+79001234567", **fields}))


@pytest.mark.parametrize(
    "reference", ["7", "order-1024", "a|b%7C:c", "Заказ № 7", "注文", "a  b", "й", "x" * 64, "№" * 64]
)
def test_a_reference_of_visible_characters_is_kept_as_it_is(reference: str) -> None:
    assert parsed(reference=reference).reference == reference


@pytest.mark.parametrize(
    "reference",
    ["", " ", " a", "a ", "a\u3000", "a\nb", "a\tb", "a\x00b", "a\x7fb", "a\u00a0b", "a\u2028b", "a\u200bb", "a\u202eb",
     "a\u2066b", "\ufeffa", "a\u00adb", "a\u2800b", "a\u3164b", "a\ufe0f", "a\ue000b", "x" * 65, 7, True, ["a"]],
)  # fmt: skip
def test_a_reference_with_an_invisible_character_or_of_another_type_is_refused(reference: object) -> None:
    for fields in ({"reference": reference}, {"consent": {"version": reference, "at": "2026-01-31T09:00:00Z"}}):
        with pytest.raises(ValidationError):
            parsed(**fields)


def test_no_control_format_separator_private_or_unassigned_character_is_accepted() -> None:
    for code in (*range(0x3000), *range(0xE000, 0x10000), *range(0xE0000, 0xE0200)):
        if unicodedata.category(chr(code))[0] in "CZ" and chr(code) != " ":
            with pytest.raises(ValidationError):
                parsed(reference=f"a{chr(code)}b")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T09:00:00Z", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31t12:00:00.5+03:00", datetime(2026, 1, 31, 9, 0, 0, 500_000, UTC)),
        ("1970-01-01T00:00:00-00:00", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_the_moment_of_a_consent_is_a_date_and_time_with_its_offset(text: str, moment: datetime) -> None:
    consent = parsed(consent={"version": "2", "at": text}).consent

    assert consent
    assert (consent.version, consent.at) == ("2", moment)


@pytest.mark.parametrize(
    "at",
    [1769850000.5, "1769850000", True, None, "", "2026-01-31", "2026-01-31T09:00:00", "2026-01-31_09:00:00Z",
     "2026-01-31T09:00Z", "2026-02-30T09:00:00Z", "2026-01-31T09:00:00+0300", "2026-01-31T09:00:00+25:00",
     "1969-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "\uff12026-01-31T09:00:00Z"],
)  # fmt: skip
def test_any_other_moment_is_refused(at: object) -> None:
    with pytest.raises(ValidationError):
        parsed(consent={"version": "2", "at": at})


def test_a_consent_may_be_as_far_in_the_future_as_clocks_differ() -> None:
    now = datetime.now(UTC)

    assert parsed(consent={"version": "2", "at": (now + timedelta(seconds=30)).isoformat()}).consent
    with pytest.raises(ValidationError, match="in the future"):
        parsed(consent={"version": "2", "at": (now + timedelta(seconds=90)).isoformat()})


@pytest.mark.parametrize("consent", [{}, {"version": "2"}, {"at": "2026-01-31T09:00:00Z"}, "yes", True, []])
def test_a_consent_has_a_version_and_a_moment(consent: object) -> None:
    with pytest.raises(ValidationError):
        parsed(consent=consent)


def test_a_consent_has_nothing_else() -> None:
    with pytest.raises(ValidationError):
        parsed(consent={"version": "2", "at": "2026-01-31T09:00:00Z", "by": "sms"})
