"""Test numbers: no call, a fixed code, no limits of the phone; for app reviewers and the tests of integrators."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import ClassVar

from app.verification.errors import PhoneNotCallable, PhoneReason
from app.verification.phone import Phone


@dataclass(frozen=True, slots=True)
class TestNumber:
    """The fixed code of a number, and the last day (UTC) on which it is valid; None: without end."""

    __test__: ClassVar = False  # no test class, whatever pytest infers from its name

    code: str
    until: date | None = None


@dataclass(frozen=True, slots=True)
class TestNumbers:
    """The test numbers by phone. ``today`` returns the day in UTC."""

    __test__: ClassVar = False

    numbers: Mapping[Phone, TestNumber] = field(repr=False)
    today: Callable[[], date]

    def code_of(self, phone: Phone) -> str | None:
        """Return the fixed code of a test number, None for any other.

        Raise PhoneNotCallable if its last day has passed: it may be a person's number, which must not be called then.
        """
        number = self.numbers.get(phone)
        if number is None:
            return None
        if number.until is not None and self.today() > number.until:
            raise PhoneNotCallable(PhoneReason.DENIED)
        return number.code
