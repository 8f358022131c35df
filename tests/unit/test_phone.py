"""Parsing phone numbers, and which of them may be called."""

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.verification.errors import PhoneNotCallable, PhoneReason
from app.verification.phone import Phone, mask_phones, parse_phone

DENIED = ("+7940", "+7998")


@pytest.mark.parametrize(
    "text",
    [
        "+79001234567",
        "89001234567",
        "79001234567",
        "9001234567",
        "8 (900) 123-45-67",
        "+7 900 123 45 67",
        "8-900-123-45-67",
        "8-10-7-900-123-45-67",
        "+7 900 123\u201345\u201367",
        "\u00a0+7\u00a0900\u00a01234567 ",
        "\uff18 \uff19\uff10\uff10 1234567",
        "+7.900.123.45.67",
        "+8 900 123-45-67",  # +89 is not a country code, so this can only be 8 900
    ],
)
def test_all_common_spellings_of_a_number_are_read_alike(text: str) -> None:
    assert parse_phone(text).e164 == "+79001234567"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", PhoneReason.INVALID),
        ("12345", PhoneReason.INVALID),
        ("phone", PhoneReason.INVALID),
        ("+7900123456", PhoneReason.INVALID),
        ("+790012345678", PhoneReason.INVALID),
        ("8 900 CALLNOW", PhoneReason.INVALID),
        ("+79001234567 ext. 5", PhoneReason.INVALID),
        ("+79001234567;ext=5", PhoneReason.INVALID),
        ("tel:+79001234567", PhoneReason.INVALID),
        ("+79001234567,5", PhoneReason.INVALID),
        ("8900+1234567", PhoneReason.INVALID),
        ("+" * 32, PhoneReason.INVALID),
        ("9" * 33, PhoneReason.INVALID),
        ("+79001234567\x00", PhoneReason.INVALID),
        ("87011234567", PhoneReason.COUNTRY),
        ("+7 701 123 45 67", PhoneReason.COUNTRY),
        ("+7 600 123 45 67", PhoneReason.COUNTRY),
        ("+1 202 555 01 23", PhoneReason.COUNTRY),
        ("+380 50 123 45 67", PhoneReason.COUNTRY),
        ("+8 800 555 35 35", PhoneReason.COUNTRY),
        ("+8 495 123-45-67", PhoneReason.COUNTRY),
        ("+8 10 7 900 123 45 67", PhoneReason.COUNTRY),
        ("+880 1712 345678", PhoneReason.COUNTRY),
        ("+8 900 123 45 6", PhoneReason.INVALID),
        ("+8 900 123 45 678", PhoneReason.INVALID),
        ("88001234567", PhoneReason.TYPE),
        ("+78091234567", PhoneReason.TYPE),
        ("+7 495 123-45-67", PhoneReason.TYPE),
        ("+78121234567", PhoneReason.TYPE),
        ("+79401234567", PhoneReason.DENIED),
        ("+79981234567", PhoneReason.DENIED),
    ],
)
def test_a_number_that_may_not_be_called_is_rejected_with_a_reason(text: str, reason: PhoneReason) -> None:
    with pytest.raises(PhoneNotCallable) as caught:
        parse_phone(text, denied_prefixes=DENIED)
    assert caught.value.reason is reason


def test_a_number_in_e164_is_judged_as_in_any_other_spelling() -> None:
    """It is read by a pattern alone; with a space in it, by the library."""

    def judge(text: str) -> str:
        try:
            return parse_phone(text).e164
        except PhoneNotCallable as error:
            return error.reason

    national = [f"{prefix:03}{rest}" for prefix in range(1000) for rest in ("0000000", "0051234", "1234567", "9999999")]
    assert [judge(f"+7{number}") for number in national] == [judge(f"+7 {number}") for number in national]
    assert judge("+7\uff1900\uff11234567") == "+79001234567"  # digits of another script


def test_no_range_is_denied_unless_configured() -> None:
    assert parse_phone("+79401234567").e164 == "+79401234567"


def test_an_allowed_prefix_overrides_a_denied_one() -> None:
    allowed = ("+79401234567",)
    assert parse_phone("+79401234567", denied_prefixes=DENIED, allowed_prefixes=allowed).e164 == "+79401234567"
    with pytest.raises(PhoneNotCallable):
        parse_phone("+79401234568", denied_prefixes=DENIED, allowed_prefixes=allowed)


def test_a_phone_is_masked_when_printed() -> None:
    phone = Phone("+79001234567")

    for shown in (str(phone), repr(phone), f"{phone}", phone.masked):
        assert "+7900•••4567" in shown
        assert "123" not in shown


@given(st.text(max_size=40))
def test_any_text_is_either_a_russian_mobile_number_or_rejected(text: str) -> None:
    try:
        phone = parse_phone(text, denied_prefixes=DENIED)
    except PhoneNotCallable:
        return
    number = phonenumbers.parse(phone.e164)
    assert phonenumbers.region_code_for_number(number) == "RU"
    assert phone.e164.startswith("+79")
    assert not phone.e164.startswith(DENIED)


@given(st.integers(9_000_000_000, 9_399_999_999), st.sampled_from(["+7", "8", "7", "", "8-10-7-"]), st.data())
def test_separators_do_not_change_a_number(national: int, prefix: str, data: st.DataObject) -> None:
    gaps = data.draw(st.lists(st.sampled_from(["", " ", "-", "."]), min_size=10, max_size=10))
    spelled = prefix + "".join(f"{digit}{gap}" for digit, gap in zip(str(national), gaps, strict=True))
    try:
        expected = parse_phone(f"+7{national}")
    except PhoneNotCallable:
        return
    assert parse_phone(spelled) == expected


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("+79001234567", "+7900•••4567"),
        ("order 8 (900) 123-45-67, two", "order +7900•••4567, two"),
        ("x9001234567y", "x+7900•••4567y"),
        ("17/7_900_123_45_67", "17/+7900•••4567"),
        ("+7 8 900 1234567", "+7900•••4567"),
        ("٩٠٠١٢٣٤٥٦٧", "+7900•••4567"),
        ("+79001234567 +79007654321", "+7900•••4567 +7900•••4321"),
        ("order-1024", "order-1024"),
        ("20261127-0000001", "20261127-0000001"),
        ("90012345678901", "90012345678901"),
    ],
)
def test_a_mobile_number_inside_a_text_is_masked(text: str, masked: str) -> None:
    assert mask_phones(text) == masked
