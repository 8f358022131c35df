"""Reading the digits of phone numbers and codes as people type or paste them."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.phone import read_phone
from app.verification.code import normalize_code
from app.verification.errors import PhoneNotCallable
from app.verification.phone import parse_phone
from app.verification.typed_text import read_digits

EVERY_CHARACTER = [chr(point) for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point)) != "Cs"]
FORMAT_CHARACTERS = [char for char in EVERY_CHARACTER if unicodedata.category(char) == "Cf"]
VARIATION_SELECTORS = [*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0))]
SPACES = [char for char in EVERY_CHARACTER if char.isspace()]
DASHES = [char for char in EVERY_CHARACTER if unicodedata.category(char) == "Pd"]
DIGITS = [char for char in EVERY_CHARACTER if unicodedata.category(char) == "Nd"]
PUNCTUATION = list(".()[]/~\u2212\u00b7\u2022\u2027\u2219\u22c5\u30fb\uff65\uff08\uff09\uff0e\uff0f\uff0d\ufe63")
DROPPED = FORMAT_CHARACTERS + VARIATION_SELECTORS + SPACES + DASHES + PUNCTUATION


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("\u202a+7 900 123-45-67\u202c", "+79001234567"),  # copied from a contact list of Windows or Android
        ("\u2066+79001234567\u2069", "+79001234567"),
        ("\u200e8 900\u200f 123\u200b4567\ufeff", "89001234567"),
        (
            "\uff0b\uff17\uff08\uff19\uff10\uff10\uff09\uff11\uff12\uff13\uff0d\uff14\uff15\uff0d\uff16\uff17",
            "+79001234567",
        ),
        ("8\u00ad900\u00ad1234567", "89001234567"),
        ("8\u2009900\u202f123\u300045\u200567", "89001234567"),
        ("(+7) 900", "+7900"),
        ("97.57.30", "975730"),
        ("97\u00b757\u00b730", "975730"),
        ("97/57/30", "975730"),
        ("9\u200b7\u200b5730", "975730"),
        ("\u0669\u0667\u0665\u0667\u0663\u0660", "975730"),
        ("\u06f9\u06f7\u06f5\u06f7\u06f3\u06f0", "975730"),
        ("\uff19\uff17\uff15\uff17\uff13\uff10", "975730"),
        ("\U0001d7d7\U0001d7d5\U0001d7d3\U0001d7d5\U0001d7d1\U0001d7ce", "975730"),
        ("9\ufe0f\u20e37\ufe0f\u20e35730", "975730"),  # keycap emoji
        ("97\u316457\u280030", "975730"),  # blanks that are letters and symbols to Unicode
    ],
)
def test_a_number_is_read_in_any_unicode_spelling(text: str, digits: str) -> None:
    assert read_digits(text) == digits


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "+",
        "()",
        "\u200b",
        "12a4",
        "1,234",
        "1;2",
        "12*34",
        "12#34",
        "1_234",
        "12\x0034",
        "12+34",
        "12+",
        "+12+",
        "\u00bd1234",
        "\u00b2\u00b3\u2074\u2075",
        "\u2460\u2461\u2462\u2463",
        "\u2488\u2489",
        "\u56db\u4e94\u516d\u4e03",
        "IV12",
        "1e5",
        "12\u03014",
    ],
)
def test_text_that_is_not_a_number_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="digits"):
        read_digits(text)


def test_ignored_characters_do_not_change_a_number() -> None:
    for char in DROPPED:
        assert read_digits(f"{char}97{char}57{char}30{char}") == "975730", f"U+{ord(char):04X}"
        assert read_digits(f"{char}+{char}7{char}900") == "+7900", f"U+{ord(char):04X}"


def test_every_unicode_decimal_digit_is_read_as_its_value() -> None:
    assert {char: read_digits(char) for char in DIGITS} == {char: str(unicodedata.decimal(char)) for char in DIGITS}


def test_every_other_character_is_rejected_or_ignored() -> None:
    """In all of Unicode only a decimal digit is read as a digit, and only a plus sign as a plus."""
    digits, dropped = set(DIGITS), set(DROPPED)
    plus = set("+\uff0b\ufe62\u207a\u208a\ufb29")  # fullwidth, small, superscript, subscript, and the Hebrew one
    for char in EVERY_CHARACTER:
        if char in digits or char in dropped:
            continue
        try:
            read = read_digits(f"{char}7900")
        except ValueError:
            continue
        assert read == ("+7900" if char in plus else "7900"), f"U+{ord(char):04X}"
        assert char in plus or not char.isalnum() or char in "\u115f\u1160\u3164\uffa0\u30fc\uff70", (
            f"U+{ord(char):04X}"
        )


@st.composite
def spellings(draw: st.DrawFn, number: str) -> str:
    """Write ``number`` in any Unicode digits, with ignored characters between them."""
    noise = st.text(st.sampled_from(DROPPED), max_size=2)
    written = ""
    for char in number:
        alike = (
            [digit for digit in DIGITS if unicodedata.decimal(digit) == int(char)] if char != "+" else ["+", "\uff0b"]
        )
        written += draw(noise) + draw(st.sampled_from(alike))
    return written + draw(noise)


@given(st.data(), st.from_regex(r"\+?[0-9]{1,15}", fullmatch=True))
def test_a_number_is_read_alike_with_any_digits_and_ignored_characters(data: st.DataObject, number: str) -> None:
    assert read_digits(data.draw(spellings(number))) == number


@given(st.data(), st.integers(0, 999_999))
def test_phones_and_codes_are_read_alike_by_api_and_command_line(data: st.DataObject, number: int) -> None:
    code, phone = f"{number:06}", f"+7900{number:07}"

    assert normalize_code(data.draw(spellings(code))) == code
    assert parse_phone(data.draw(spellings(phone))).e164 == phone
    assert read_phone(data.draw(spellings(phone))).e164 == phone


@given(st.text(max_size=20))
def test_the_digits_read_are_exactly_the_decimal_digits_of_the_text(text: str) -> None:
    """No digit is added, left out or moved."""
    try:
        read = read_digits(text)
    except ValueError:
        return
    assert read.removeprefix("+") == "".join(str(unicodedata.decimal(char)) for char in text if char in set(DIGITS))


@given(st.text(st.sampled_from([*"0123456789+", *DROPPED, *DIGITS]), max_size=20))
def test_a_number_with_a_plus_sign_is_read_as_that_number_or_rejected(text: str) -> None:
    try:
        phone, digits = parse_phone(text), read_digits(text)
    except PhoneNotCallable:
        return
    if digits.startswith("+"):
        assert phone.e164 in {digits, digits.replace("+89", "+79", 1), digits.replace("+789", "+79", 1)}
