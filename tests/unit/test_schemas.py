"""The answer to a check is written without its model, and is what the model would be."""

from datetime import timedelta

import pytest
from pydantic import TypeAdapter
from pydantic_core import to_json

from app.api.schemas import CheckView, view_check
from app.verification.model import CheckResult, Locked, Verified, Waiting, WrongCode
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
