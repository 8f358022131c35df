"""A phone and a code as people type or paste them, through every layer."""

import httpx
import pytest

from tests.integration.test_channels_routes import BEELINE, Sandbox, sandbox  # noqa: F401 - a fixture
from tests.integration.test_verification import hear

PHONE = "+79001234567"
FULLWIDTH = str.maketrans("0123456789", "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19")
PERSIAN = str.maketrans("0123456789", "\u06f0\u06f1\u06f2\u06f3\u06f4\u06f5\u06f6\u06f7\u06f8\u06f9")


@pytest.mark.parametrize(
    "text",
    [
        "\u202a+7 900 123-45-67\u202c",
        "\u2068\u200e\ufe0f".join(["", *PHONE]),  # more marks than the maximum length of the text
        f"\u00ad{PHONE}".translate(FULLWIDTH),
        PHONE.translate(PERSIAN),
        "+8 900 123-45-67",
    ],
)
async def test_a_phone_pasted_with_invisible_or_foreign_characters_is_called(api: httpx.AsyncClient, text: str) -> None:
    answer = await api.post("/verify/start", json={"phone": text})
    assert (answer.status_code, answer.json().get("phone")) == (201, "+7900•••4567")


async def test_a_right_code_with_separators_or_foreign_digits_verifies(api: httpx.AsyncClient) -> None:
    await api.post("/verify/start", json={"phone": PHONE})
    code = await hear(api, PHONE)
    typed = f"\u2066{code[:2]}\u200b.{code[2:4].translate(PERSIAN)}\u00b7{code[4:].translate(FULLWIDTH)}\u2069"

    answer = await api.post("/verify/check", json={"phone": PHONE.translate(FULLWIDTH), "code": typed})

    assert answer.json()["verified"] is True


async def test_the_full_caller_number_of_a_flash_call_verifies(sandbox: Sandbox) -> None:  # noqa: F811 - the fixture
    started = await sandbox.start(BEELINE, channel="flash_call")
    await sandbox.heard(BEELINE)
    caller = sandbox.network.calls_of(BEELINE)[-1].caller
    assert caller

    wrong = f"{caller[:-1]}{(int(caller[-1]) + 1) % 10}"
    assert (await sandbox.check(started, code=wrong))["checks_left"] == 2
    assert (await sandbox.check(started, code=f"\u202a{caller}\u202c"))["verified"] is True


async def test_a_full_phone_number_as_a_spoken_code_is_invalid_and_uses_no_check(api: httpx.AsyncClient) -> None:
    started = (await api.post("/verify/start", json={"phone": PHONE})).json()
    body = {"verification_id": started["verification_id"], "code": PHONE}

    assert (await api.post("/verify/check", json=body)).status_code == 422
    assert (await api.get(f"/verify/{started['verification_id']}")).json()["checks_left"] == 5
