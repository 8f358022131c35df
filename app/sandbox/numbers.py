"""The numbers of the virtual telephone network: those with a special effect, and those to dial."""

from enum import StrEnum
from typing import Self

DIAL_NUMBERS = tuple(f"880055501{number:02}" for number in range(10))  # for reverse calls; made up


class MagicNumber(StrEnum):
    """Made-up numbers to which something else happens than a call that is answered."""

    effect: str

    def __new__(cls, phone: str, effect: str) -> Self:
        """Return a member that is the number in E.164, with a sentence about its effect for the documentation."""
        member = str.__new__(cls, phone)
        member._value_ = phone
        member.effect = effect
        return member

    BUSY = "+79000000001", "The line is busy; the code is never heard."
    NO_ANSWER = "+79000000002", "It rings and nobody answers; the code is never heard."
    REFUSED = "+79000000003", "The provider refuses every channel: HTTP 200 with success: false."
    NO_BALANCE = "+79000000004", "The account cannot pay for a call, on any channel: HTTP 200 with success: false."
    NO_ACCESS = "+79000000005", "The provider answers HTTP 500 with the text 'no access', on every channel."
    NO_REPLY_PLACED = "+79000000006", "The call is placed and heard, but the provider never answers, on any channel."
    NO_REPLY_NOT_PLACED = "+79000000007", "No call is placed, and the provider never answers, on any channel."
    FAILED = "+79000000008", "The call is placed and fails in the network; the code is never heard."
    ODD_STATUS = "+79000000009", "The call passes through the undocumented status 'rerouted' before it completes."
    VOICE_REFUSED = "+79000000010", "The provider refuses voice calls alone: HTTP 200 with success: false."
    OTHER_PIN = "+79000000011", "A flash call ignores the requested code: the provider uses and returns another."
    CALLBACK_TWICE = "+79000000012", "Each callback of a reverse call is sent twice, both at the same moment."
    CALLBACK_OF_ANOTHER = "+79000000013", "The confirming callback of a reverse call has another caller's number."
    CALLBACK_AS_FORM = "+79000000014", "Callbacks are form fields; for other numbers JSON and form fields alternate."
