"""Phone numbers: parsing any spelling of a Russian mobile number, and masking."""

import re

import phonenumbers
from phonenumbers import PhoneNumberType

from app.verification.errors import PhoneNotCallable, PhoneReason
from app.verification.typed_text import read_digits
from app.verification.values import value

# A mobile number with both prefixes at once, the international and the national one. It can be no other number: +89 is
# assigned to no country (ITU-T E.164, list of country codes). Other +8… are: +84 Vietnam, +86 China, +880 Bangladesh.
_BOTH_PREFIXES = re.compile(r"\+89[0-9]{9}")
_PLAN = phonenumbers.PhoneMetadata.metadata_for_region("RU").mobile.national_number_pattern  # type: ignore[union-attr] # it has mobiles
# The usual spelling, by the library's own numbering plan, without the fifty times longer way through the library.
_E164_MOBILE = re.compile(rf"\+7(?:{_PLAN})", re.ASCII)
_MOBILE_IN_TEXT = re.compile(r"(?<![0-9])\+?(?:(?:7[\W_]*)?8[\W_]*|7[\W_]*)?(9(?:[\W_]*[0-9]){9})(?![0-9])")
_MOBILE = {PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE}
_RUSSIA = 7
_KAZAKH = re.compile(r"[67][0-9]{9}")  # +7 6XX and +7 7XX are Kazakhstan's part of the shared country code


@value
class Phone:
    """A phone number in E.164. Prints masked, so that no log line or traceback contains it."""

    e164: str

    @property
    def masked(self) -> str:
        """The number without its middle digits: ``+7900•••4567``."""
        return f"{self.e164[:5]}•••{self.e164[-4:]}"

    def __str__(self) -> str:
        return self.masked

    def __repr__(self) -> str:
        return f"Phone({self.masked})"


def mask_phones(text: str) -> str:
    """Return ``text`` with each Russian mobile number in it masked, whatever stands between its digits.

    Digits of other scripts become ASCII.
    """
    ascii_digits = "".join([str(int(char)) if char.isdecimal() else char for char in text])
    return _MOBILE_IN_TEXT.sub(lambda found: Phone("+7" + re.sub("[^0-9]", "", found[1])).masked, ascii_digits)


def parse_phone(text: str, *, denied_prefixes: tuple[str, ...] = (), allowed_prefixes: tuple[str, ...] = ()) -> Phone:
    """Parse any spelling of a Russian mobile number.

    A valid number is not enough: ``+7`` is shared with Kazakhstan, and toll-free, premium and fixed lines must not be
    called (numbering plan of the ``phonenumbers`` library).

    Raise PhoneNotCallable if it is not a number, not Russian, not a mobile, or denied: it begins with one of
    ``denied_prefixes`` and with none of ``allowed_prefixes``.
    """
    e164 = text if _E164_MOBILE.fullmatch(text) else _read_mobile(text)
    if e164.startswith(denied_prefixes) and not e164.startswith(allowed_prefixes):
        raise PhoneNotCallable(PhoneReason.DENIED)
    return Phone(e164)


def _read_mobile(text: str) -> str:
    """Return a number in E.164. Raise PhoneNotCallable if it is no Russian mobile."""
    # Nothing but digits reaches the parser: it would read "8 900 CALL NOW" as a vanity number and drop an extension.
    try:
        digits = read_digits(text)
        number = phonenumbers.parse(digits[1:] if _BOTH_PREFIXES.fullmatch(digits) else digits, "RU")
    except (ValueError, phonenumbers.NumberParseException):
        raise PhoneNotCallable(PhoneReason.INVALID) from None
    if number.country_code != _RUSSIA or _KAZAKH.fullmatch(str(number.national_number)):
        raise PhoneNotCallable(PhoneReason.COUNTRY)
    if not phonenumbers.is_valid_number_for_region(number, "RU"):
        raise PhoneNotCallable(PhoneReason.INVALID)
    if phonenumbers.number_type(number) not in _MOBILE:
        raise PhoneNotCallable(PhoneReason.TYPE)
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
