"""Test numbers: no call, a fixed code, no limits; for app-store reviewers and the tests of those who integrate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date

from app.verification.errors import PhoneNotCallable, PhoneReason
from app.verification.phone import Phone


@dataclass(frozen=True, slots=True)
class FixedCode:
    """The fixed code of a number, and the last day on which it is one (UTC); without a day, for good."""

    code: str
    until: date | None = None


class FixedCodes:
    """Knows the test numbers. ``today`` tells the day, UTC."""

    def __init__(self, numbers: Mapping[Phone, FixedCode], today: Callable[[], date]) -> None:
        self._numbers = numbers
        self._today = today

    def code_of(self, phone: Phone) -> str | None:
        """Return the fixed code of a test number, none for any other.

        Raises:
            PhoneNotCallable: it was a test number until a day that has passed. It may be somebody's, so it is not
                called for real all of a sudden.

        """
        number = self._numbers.get(phone)
        if number is None:
            return None
        if number.until is not None and self._today() > number.until:
            raise PhoneNotCallable(PhoneReason.DENIED)
        return number.code
