"""A phone and a code as people paste them, through every layer."""

import httpx
import pytest

from tests.integration.test_three_channels import BEELINE, World, world  # noqa: F401 - a fixture
from tests.integration.test_verify import hear

PHONE = "+79001234567"
FULLWIDTH = str.maketrans("0123456789", "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19")
PERSIAN = str.maketrans("0123456789", "\u06f0\u06f1\u06f2\u06f3\u06f4\u06f5\u06f6\u06f7\u06f8\u06f9")


@pytest.mark.parametrize(
    "text",
    [
        "\u202a+7 900 123-45-67\u202c",
        "\u2068\u200e\ufe0f".join(["", *PHONE]),  # more marks than the text may be long
        f"\u00ad{PHONE}".translate(FULLWIDTH),
        PHONE.translate(PERSIAN),
        "+8 900 123-45-67",
    ],
)
async def test_a_pasted_phone_is_called(api: httpx.AsyncClient, text: str) -> None:
    answer = await api.post("/verify/start", json={"phone": text})
    assert (answer.status_code, answer.json().get("phone")) == (201, "+7900•••4567")


async def test_a_right_code_is_right_in_any_spelling(api: httpx.AsyncClient) -> None:
    await api.post("/verify/start", json={"phone": PHONE})
    code = await hear(api, PHONE)
    typed = f"\u2066{code[:2]}\u200b.{code[2:4].translate(PERSIAN)}\u00b7{code[4:].translate(FULLWIDTH)}\u2069"

    answer = await api.post("/verify/check", json={"phone": PHONE.translate(FULLWIDTH), "code": typed})

    assert answer.json()["verified"] is True


async def test_the_whole_number_of_a_flash_call_verifies(world: World) -> None:  # noqa: F811 - the fixture
    started = await world.start(BEELINE, channel="flash_call")
    await world.heard(BEELINE)
    caller = world.network.calls_of(BEELINE)[-1].caller
    assert caller

    wrong = f"{caller[:-1]}{(int(caller[-1]) + 1) % 10}"
    assert (await world.check(started, code=wrong))["checks_left"] == 2
    assert (await world.check(started, code=f"\u202a{caller}\u202c"))["verified"] is True


async def test_a_whole_number_costs_no_check_of_a_spoken_code(api: httpx.AsyncClient) -> None:
    started = (await api.post("/verify/start", json={"phone": PHONE})).json()
    body = {"verification_id": started["verification_id"], "code": PHONE}

    assert (await api.post("/verify/check", json=body)).status_code == 422
    assert (await api.get(f"/verify/{started['verification_id']}")).json()["checks_left"] == 5
