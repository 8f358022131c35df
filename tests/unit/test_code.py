"""Verification codes, their keyed digests and the keys of those."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.verification.code import CodeDigester, make_code, normalize_code
from app.verification.keys import derive_key

OLD, NEW = b"o" * 32, b"n" * 32
digit_strings = st.text("0123456789", min_size=4, max_size=6)


@pytest.mark.parametrize("length", [4, 5, 6])
def test_codes_have_the_requested_length_and_only_digits(length: int) -> None:
    for _ in range(200):
        code = make_code(length)
        assert len(code) == length
        assert set(code) <= set("0123456789")


def test_codes_are_uniformly_distributed_and_may_begin_with_zero() -> None:
    """Ten thousand four-digit codes: each first digit about a thousand times (within six standard deviations)."""
    first = Counter(make_code(4)[0] for _ in range(10_000))
    assert set(first) == set("0123456789")
    assert all(820 <= count <= 1180 for count in first.values())


@pytest.mark.parametrize("text", ["123456", "123 456", "12-34-56", " 123456 ", "123\u2013456", "1 2 3 4 5 6"])
def test_spaces_and_dashes_in_a_code_are_ignored(text: str) -> None:
    assert normalize_code(text) == "123456"


@pytest.mark.parametrize(
    "text",
    ["", "123", "1234567", "12345678", "123456789", "123456789012", "12a4", "1234\n5678", "+12345", "1_234", "12,345"],
)
def test_anything_but_four_to_six_digits_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="4 to 6 digits"):
        normalize_code(text)


@pytest.mark.parametrize(
    "text",
    ["+79990001234", "8 (999) 000-12-34", "79990001234", "999 000 12 34", "+375 29 000-12-34", "+7\u200b9990001234"],
)
def test_the_full_calling_number_of_a_flash_call_is_read_as_its_last_four_digits(text: str) -> None:
    assert normalize_code(text) == "1234"


@pytest.mark.parametrize("text", ["1234567890", "12345678901", "00000000000"])
def test_digits_that_are_not_a_valid_phone_number_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="4 to 6 digits"):
        normalize_code(text)


@given(digit_strings, digit_strings)
def test_different_codes_have_different_digests(one: str, other: str) -> None:
    digester = CodeDigester([NEW])
    assert (digester.digest("shop", one) == digester.digest("shop", other)) == (one == other)


@given(digit_strings)
def test_a_digest_depends_on_the_key_and_the_client(code: str) -> None:
    assert CodeDigester([NEW]).digest("shop", code) != CodeDigester([OLD]).digest("shop", code)
    assert CodeDigester([NEW]).digest("shop", code) != CodeDigester([NEW]).digest("bank", code)


@given(digit_strings)
def test_after_a_key_rotation_old_codes_verify_and_new_codes_use_the_new_key(code: str) -> None:
    before, after = CodeDigester([OLD]), CodeDigester([NEW, OLD])

    assert before.digest("shop", code) in after.candidates("shop", code)
    assert after.digest("shop", code) == CodeDigester([NEW]).digest("shop", code)
    assert after.digest("shop", code) in after.candidates("shop", code)


def test_moving_a_digit_between_client_and_code_changes_the_digest() -> None:
    digester = CodeDigester([NEW])
    assert digester.digest("shop1", "2345") != digester.digest("shop", "12345")


def test_each_purpose_of_a_secret_has_its_own_derived_key() -> None:
    assert len({derive_key(NEW, "code"), derive_key(NEW, "phone"), NEW}) == 3
