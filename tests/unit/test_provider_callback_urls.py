"""The secret callback URL of a call identifies it, and cannot be forged."""

import pytest

from app.verification.follow import CallbackUrls
from app.verification.ports import CallId

NAME = CallId("vrf_0a11b22c33d44e55f667788", 2)
PREFIX = "https://verify.example/hooks/plusofon/"


def secret_of(name: CallId, key: bytes = b"k" * 32) -> str:
    return CallbackUrls(key, PREFIX).url_of(name).removeprefix(PREFIX)


def test_a_callback_url_is_read_as_the_call_it_was_made_for() -> None:
    assert CallbackUrls(b"k" * 32, PREFIX).read(secret_of(NAME)) == NAME


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "vrf_0a11b22c33d44e55f667788.2",
        "vrf_0a11b22c33d44e55f667788.2." + "0" * 32,
        secret_of(NAME).replace(".2.", ".3."),
        secret_of(NAME).replace("vrf_0a", "vrf_0b"),
        secret_of(NAME).upper(),
        secret_of(NAME) + "0",
        secret_of(NAME)[:-1],
        secret_of(NAME, key=b"another" * 5),
        "\x00" * 50,
    ],
)
def test_a_changed_or_forged_secret_is_rejected(secret: str) -> None:
    assert CallbackUrls(b"k" * 32, PREFIX).read(secret) is None
