"""The flows that the documentation shows, run as they stand there."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Demo

FLOWS = Path(__file__).parents[2] / "docs" / "flows"
PHONE = "+79001234567"
ADDRESS = "192.0.2.1"


def block(flow: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", (FLOWS / f"{flow}.md").read_text(), re.DOTALL)
    return str(found)


Load = Callable[[str], dict[str, Any]]


@pytest.fixture
def load(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Run the Python of a flow, and hand out what it defines."""
    monkeypatch.setenv("VERIFY_URL", demo.base_url)
    monkeypatch.setenv("VERIFY_KEY", "the-sandbox-asks-for-none")
    names: dict[str, Any] = {}

    def run(flow: str) -> dict[str, Any]:
        exec(compile(block(flow, "python"), flow, "exec"), names)
        return names

    yield run
    names["api"].close()


@pytest.mark.parametrize(
    ("flow", "told"),
    [("password-recovery", '"redeemed":true'), ("sign-up", '"verified":true'), ("step-up-login", '"keys"')],
)
def test_the_curl_of_a_flow_runs_to_its_end(flow: str, told: str, demo: Demo) -> None:
    done = subprocess.run(
        ["sh", "-c", block(flow, "sh")],
        env={"PATH": os.environ["PATH"], "VERIFY_URL": demo.base_url},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert told in done.stdout
    if flow == "sign-up":
        assert done.stdout.count('"status":"pending"') == 2
        assert done.stdout.count('"call_id"') == 1


def test_a_forgotten_password_is_set_anew_once(demo: Demo, load: Load) -> None:
    flow = load("password-recovery")
    accounts = {PHONE: "forgotten"}
    session: dict[str, str] = {}
    stranger: dict[str, str] = {}

    known = flow["request_reset"](accounts, session, PHONE, ADDRESS)
    unknown = flow["request_reset"](accounts, stranger, "+79007654321", ADDRESS)
    assert known == unknown
    code = demo.hear(PHONE)
    assert not flow["reset"](accounts, stranger, code, "stolen", ADDRESS)
    assert flow["reset"](accounts, session, code, "new", ADDRESS)
    assert not flow["reset"](accounts, dict(session), code, "again", ADDRESS)

    assert accounts == {PHONE: "new"}


def test_a_new_user_signs_up_after_a_wrong_code(demo: Demo, load: Load) -> None:
    flow = load("sign-up")
    accounts: set[str] = set()
    session: dict[str, str] = {}

    assert "+7900•••4567" in flow["call"](session, "8 (900) 123-45-67", ADDRESS)
    assert "try again in" in flow["call"](session, PHONE, ADDRESS)
    assert "check the number" in flow["call"](session, "12345", ADDRESS)
    code = demo.hear(PHONE)
    wrong = code[:-1] + str((int(code[-1]) + 1) % 10)
    assert "4 more tries" in flow["sign_up"](accounts, session, wrong, ADDRESS)
    assert flow["sign_up"](accounts, session, code, ADDRESS) == "Welcome!"

    assert accounts == {PHONE}


def test_another_service_believes_a_step_up_for_this_phone_alone(demo: Demo, load: Load) -> None:
    flow = load("step-up-login")

    verification_id = flow["call"](PHONE)
    token = flow["prove"](verification_id, demo.hear(PHONE))

    assert flow["is_proved"](token, PHONE)
    assert not flow["is_proved"](token, "+79007654321")
    assert not flow["is_proved"](token[:-4] + "AAAA", PHONE)
