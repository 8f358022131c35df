"""The numbers of the virtual telephone network: which have a special effect, whose they are, what can be dialled."""

import secrets
from enum import StrEnum
from typing import Self

import phonenumbers
from phonenumbers import carrier

MTS = "mts"
# The ranges of MTS in the Russian numbering plan; the library's table of carriers leaves them out.
_MTS_RANGES = tuple(f"+7{code}" for code in (*range(910, 920), *range(980, 990)))
DIAL_NUMBERS = tuple(f"880055501{number:02}" for number in range(10))  # what a reverse call is to dial; made up
_FLASH_CALLER = "+7495000"  # no subscriber's number in Moscow begins with a zero: these are nobody's


class MagicNumber(StrEnum):
    """The numbers, all made up, to which something else happens than a call that is answered."""

    effect: str

    def __new__(cls, phone: str, effect: str) -> Self:
        """Make the member a string, the number in E.164, with the sentence that the docs print beside it."""
        member = str.__new__(cls, phone)
        member._value_ = phone
        member.effect = effect
        return member

    BUSY = "+79000000001", "The line is busy; the code is never heard."
    NO_ANSWER = "+79000000002", "It rings and nobody answers; the code is never heard."
    REFUSED = "+79000000003", "The provider refuses every channel: HTTP 200 with success: false."
    NO_BALANCE = "+79000000004", "The account cannot pay for a call, on any channel: HTTP 200 with success: false."
    NO_ACCESS = "+79000000005", "The provider answers HTTP 500 with the text 'no access', on every channel."
    NO_REPLY_PLACED = (
        "+79000000006",
        "The call is placed and heard, but the provider's answer never comes, on any channel.",
    )
    NO_REPLY_NOT_PLACED = "+79000000007", "Nothing is placed, and the provider's answer never comes, on any channel."
    FAILED = "+79000000008", "The call is placed and fails in the network; the code is never heard."
    ODD_STATUS = "+79000000009", "The call passes through the unheard-of status 'rerouted' before it completes."
    VOICE_REFUSED = (
        "+79000000010",
        "The provider refuses to speak a code, with HTTP 200 and success: false; the other channels work.",
    )
    OTHER_PIN = (
        "+79000000011",
        "For a flash call the provider ignores the code asked for and answers another, which is what the phone sees.",
    )
    HOOK_TWICE = "+79000000012", "Each hook of a reverse call comes twice, both at the same moment."
    HOOK_OF_ANOTHER = "+79000000013", "The confirming hook of a reverse call names another caller's number."
    HOOK_AS_FORM = (
        "+79000000014",
        "The hooks of a reverse call are form fields; for every other number they are JSON and form fields in turn.",
    )


def operator_of(phone: str) -> str | None:
    """Name the operator of a number in E.164, in lower case, as far as the numbering plan tells it."""
    if phone.startswith(_MTS_RANGES):
        return MTS
    return carrier.name_for_number(phonenumbers.parse(phone), "en").lower() or None


def make_pin(*, other_than: str | None = None) -> str:
    """Make up the four digits of a flash call."""
    if other_than is None:
        return f"{secrets.randbelow(10_000):04}"
    return f"{(int(other_than) + 1 + secrets.randbelow(9_999)) % 10_000:04}"


def flash_caller(pin: str) -> str:
    """Make up the calling number that gives ``pin`` away: it ends with it."""
    return _FLASH_CALLER + pin


def local(phone: str) -> str:
    """Spell a number in E.164 as the provider does: ``8XXXXXXXXXX``."""
    return phone.replace("+7", "8", 1)


def another(phone: str) -> str:
    """Return the neighbour of a number: the last digit, one up."""
    return f"{phone[:-1]}{(int(phone[-1]) + 1) % 10}"


def same_line(one: str, other: str) -> bool:
    """Return whether two spellings, ``8…``, ``7…`` or ``+7…`` with any punctuation, are one Russian number."""
    return _national(one) == _national(other)


def _national(number: str) -> str:
    return "".join(filter(str.isdigit, number))[-10:]
