"""The documented flows, run exactly as written in ``docs/flows``."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.sandbox.numbers import MagicNumber
from tests.e2e.conftest import Demo, without_cooldowns
from tests.e2e.test_integration_docs import LosesAnswers
from tests.waiting import PATIENCE

FLOWS = Path(__file__).parents[2] / "docs" / "flows"
PHONE = "+79001234567"
ANOTHER = "+79009876543"
ADDRESS = "192.0.2.1"


def block(flow: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", (FLOWS / f"{flow}.md").read_text(), re.DOTALL)
    return str(found)


Load = Callable[[str], dict[str, Any]]


@pytest.fixture
def load(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Return a function that runs the Python code of a flow and returns its names."""
    monkeypatch.setenv("VERIFY_URL", demo.base_url)
    monkeypatch.setenv("VERIFY_KEY", "the-sandbox-asks-for-none")
    names: dict[str, Any] = {}

    def run(flow: str) -> dict[str, Any]:
        exec(compile(block(flow, "python"), flow, "exec"), names)
        return names

    yield run
    names["api"].close()


@pytest.mark.parametrize(
    ("flow", "expected"),
    [("password-recovery", '"redeemed":true'), ("sign-up", '"verified":true'), ("step-up-login", '"keys"')],
)
def test_the_curl_commands_of_a_flow_succeed(flow: str, expected: str, demo: Demo) -> None:
    done = subprocess.run(
        ["sh", "-c", block(flow, "sh")],
        env={"PATH": os.environ["PATH"], "VERIFY_URL": demo.base_url},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert expected in done.stdout
    if flow == "sign-up":
        assert done.stdout.count('"status":"pending"') == 2
        assert done.stdout.count('"call_id"') == 1


def test_password_recovery_resets_the_password_once(demo: Demo, load: Load) -> None:
    flow = load("password-recovery")
    accounts = {PHONE: "forgotten"}
    session: dict[str, str] = {}
    stranger: dict[str, str] = {}

    known = flow["request_reset"](
        accounts, session, "8 (900) 123-45-67", ADDRESS
    )  # spelled differently than in the account
    unknown = flow["request_reset"](accounts, stranger, "+79007654321", ADDRESS)
    assert known == unknown
    session, stranger = dict(session), dict(stranger)  # saved with the response; later changes are not in it
    code = demo.hear(PHONE)
    assert not flow["reset"](accounts, stranger, code, "stolen", ADDRESS)
    again = dict(session)
    assert flow["reset"](accounts, session, code, "new", ADDRESS)
    assert not flow["reset"](accounts, session, code, "again", ADDRESS)
    assert not flow["reset"](accounts, again, code, "again", ADDRESS)

    assert accounts == {PHONE: "new"}


def test_pressing_the_button_twice_keeps_the_current_call(demo: Demo, load: Load) -> None:
    flow = load("password-recovery")
    accounts = {PHONE: "forgotten"}
    session: dict[str, str] = {}

    flow["request_reset"](accounts, session, PHONE, ADDRESS)
    code = demo.hear(PHONE)
    flow["request_reset"](accounts, session, PHONE, ADDRESS)  # too early for another
    flow["background"].shutdown()

    assert flow["reset"](accounts, session, code, "new", ADDRESS)


@without_cooldowns
def test_a_resend_in_password_recovery_keeps_the_first_code_valid(demo: Demo, load: Load) -> None:
    flow = load("password-recovery")
    accounts = {PHONE: "forgotten"}

    flow["call"]("asker", PHONE, ADDRESS)
    code = demo.hear(PHONE)
    began = flow["started_by"]["asker"]
    flow["call"]("asker", PHONE, ADDRESS)
    assert flow["started_by"]["asker"] == began
    assert flow["reset"](accounts, {"asker": "asker"}, code, "new", ADDRESS)
    flow["call"]("asker", PHONE, ADDRESS)  # the verification is over

    assert flow["started_by"]["asker"] != began


@without_cooldowns
def test_a_resend_in_sign_up_uses_the_same_verification_while_it_is_pending(demo: Demo, load: Load) -> None:
    flow = load("sign-up")
    accounts: set[str] = set()
    session: dict[str, str] = {}

    flow["call"](session, ANOTHER, ADDRESS)
    ids = [session["verification_id"]]
    flow["call"](session, PHONE, ADDRESS)  # another phone is another verification
    code = demo.hear(PHONE)
    ids.append(session["verification_id"])
    flow["call"](session, PHONE, ADDRESS)
    ids.append(session["verification_id"])
    assert flow["sign_up"](accounts, session, code, ADDRESS) == "Welcome!"
    flow["call"](session, PHONE, ADDRESS)
    ids.append(session["verification_id"])

    assert ids[1] == ids[2]
    assert len(set(ids)) == 3


@without_cooldowns
def test_a_resend_in_step_up_login_uses_the_same_verification_while_it_is_pending(demo: Demo, load: Load) -> None:
    flow = load("step-up-login")

    began = flow["call"](PHONE)
    code = demo.hear(PHONE)
    assert flow["call"](PHONE, began) == began
    assert flow["prove"](began, code)

    assert flow["call"](PHONE, began) != began


def test_sign_up_succeeds_after_a_wrong_code(demo: Demo, load: Load) -> None:
    flow = load("sign-up")
    accounts: set[str] = set()
    session: dict[str, str] = {}

    assert "+7900•••4567" in flow["call"](session, "8 (900) 123-45-67", ADDRESS)
    assert "try again in" in flow["call"](session, PHONE, ADDRESS)
    assert "check the number" in flow["call"](session, "12345", ADDRESS)
    code = demo.hear(PHONE)
    wrong = code[:-1] + str((int(code[-1]) + 1) % 10)
    assert "4 more tries" in flow["sign_up"](accounts, session, wrong, ADDRESS)
    assert flow["sign_up"](accounts, session, "12a", ADDRESS) == "Please check the code."
    assert flow["sign_up"](accounts, session, code, ADDRESS) == "Welcome!"

    assert accounts == {PHONE}


def test_after_the_last_wrong_code_sign_up_says_when_to_start_again(demo: Demo, load: Load) -> None:
    flow = load("sign-up")
    session: dict[str, str] = {}
    flow["call"](session, PHONE, ADDRESS)
    code = demo.hear(PHONE)
    wrong = code[:-1] + str((int(code[-1]) + 1) % 10)

    said = [flow["sign_up"](set(), session, wrong, ADDRESS) for _ in range(6)]

    assert said[3] == "That was not the code. 1 more tries."
    waits = [int(words.removeprefix("Please start again in ").removesuffix(" s.")) for words in said[4:]]
    assert all(0 < wait <= 60 for wait in waits)  # until the phone can be called again


@pytest.mark.parametrize("flow", ["password-recovery", "sign-up", "step-up-login"])
def test_a_flow_has_a_sufficient_timeout_and_retries_a_request_whose_response_was_lost(
    flow: str, demo: Demo, load: Load
) -> None:
    names = load(flow)
    assert names["api"].timeout == httpx.Timeout(15)
    names["api"].close()
    names["api"] = httpx.Client(base_url=demo.base_url, transport=(transport := LosesAnswers()), timeout=PATIENCE)

    answer = names["post"]("/verify/start", {"phone": PHONE})

    assert (answer.status_code, answer.json()["calls_placed"], transport.sent) == (201, 1, 2)


def test_each_document_calls_its_own_number_and_no_magic_number() -> None:
    """Otherwise a reader who tries the documents one after the other would run into the cooldown."""
    pages = [*FLOWS.glob("*.md"), FLOWS.parent / "integration" / "curl.md", FLOWS.parents[1] / "README.md"]
    numbers = {
        page.name: set(re.findall(r'"phone": "(\+7\d{10})"', page.read_text(encoding="utf-8"))) for page in pages
    }
    numbers["README.md"].add(PHONE)  # spelled differently there

    everything = [number for found in numbers.values() for number in found]
    assert all(numbers.values())
    assert len(everything) == len(set(everything))
    assert not set(everything) & set(MagicNumber)


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("+7 900 123-45-67", PHONE),
        ("8(900)1234567", PHONE),
        ("9001234567", PHONE),
        ("\u202a7.900.123.45.67\u202c", PHONE),
        ("\u06f8\u06f9\u06f0\u06f0\u06f1\u06f2\u06f3\u06f4\u06f5\u06f6\u06f7", PHONE),
        ("+380 50 123 45 67", None),
        ("12345", None),
        ("", None),
    ],
)
def test_password_recovery_finds_the_account_for_any_spelling_of_the_number(
    load: Load, typed: str, number: str | None
) -> None:
    assert load("password-recovery")["e164"](typed) == number


def test_another_service_accepts_a_token_despite_a_clock_difference_of_some_seconds(
    demo: Demo, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = load("step-up-login")
    token = flow["prove"](flow["call"](PHONE), demo.hear(PHONE))
    now = time.time
    accepted = {}

    for seconds in (-60, -25, -1, 0, 600 + 20, 600 + 60):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: now() + seconds)
        accepted[seconds] = flow["is_proved"](token, PHONE)

    assert accepted == {-60: False, -25: True, -1: True, 0: True, 620: True, 660: False}


def test_another_service_accepts_a_token_only_for_its_phone(demo: Demo, load: Load) -> None:
    flow = load("step-up-login")

    verification_id = flow["call"](PHONE)
    token = flow["prove"](verification_id, demo.hear(PHONE))

    assert flow["is_proved"](token, PHONE)
    assert not flow["is_proved"](token, "+79007654321")
    assert not flow["is_proved"](token[:-4] + "AAAA", PHONE)
