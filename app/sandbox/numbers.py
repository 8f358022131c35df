"""The numbers of the virtual telephone network: those with a special effect on calls, and those to dial."""

from enum import StrEnum
from typing import Self

DIAL_NUMBERS = tuple(f"880055501{number:02}" for number in range(10))  # for reverse calls; made up


class NetworkStatus(StrEnum):
    """The status of a call. ``rerouted`` is a status that Plusofon does not document, to test clients with."""

    QUEUED = "queued"
    RINGING = "ringing"
    REROUTED = "rerouted"
    ANSWERED = "answered"
    COMPLETED = "completed"
    BUSY = "busy"
    NO_ANSWER = "no_answer"
    FAILED = "failed"


Timeline = tuple[tuple[int, NetworkStatus], ...]
"""The statuses of a call, each with the number of phases after which it begins."""


class MagicNumber(StrEnum):
    """Made-up numbers to which something else happens than a call that is answered.

    A member is the number in E.164, with its ``effect`` for the documentation and, if its calls are placed but go
    otherwise than others, their ``timeline``. ``network.py`` has the other effects.
    """

    effect: str
    timeline: Timeline

    def __new__(cls, phone: str, effect: str, *timeline: tuple[int, NetworkStatus]) -> Self:
        """Return a member; its ``timeline`` follows being queued."""
        member = str.__new__(cls, phone)
        member._value_, member.effect = phone, effect
        member.timeline = ((0, NetworkStatus.QUEUED), *timeline) if timeline else ()
        return member

    BUSY = "+79000000001", "The line is busy; the code is never heard.", (1, NetworkStatus.BUSY)
    NO_ANSWER = (
        "+79000000002", "It rings and nobody answers; the code is never heard.",
        (1, NetworkStatus.RINGING), (5, NetworkStatus.NO_ANSWER),
    )  # fmt: skip
    REFUSED = "+79000000003", "The provider refuses every channel: HTTP 200 with success: false."
    NO_BALANCE = "+79000000004", "The account cannot pay for a call, on any channel: HTTP 200 with success: false."
    NO_ACCESS = "+79000000005", "The provider answers HTTP 500 with the text 'no access', on every channel."
    NO_REPLY_PLACED = "+79000000006", "The call is placed and heard, but the provider never answers, on any channel."
    NO_REPLY_NOT_PLACED = "+79000000007", "No call is placed, and the provider never answers, on any channel."
    FAILED = (
        "+79000000008", "The call is placed and fails in the network; the code is never heard.",
        (1, NetworkStatus.FAILED),
    )  # fmt: skip
    ODD_STATUS = (
        "+79000000009", "The call passes through the undocumented status 'rerouted' before it completes.",
        (1, NetworkStatus.REROUTED), (5, NetworkStatus.COMPLETED),
    )  # fmt: skip
    VOICE_REFUSED = "+79000000010", "The provider refuses voice calls alone: HTTP 200 with success: false."
    OTHER_PIN = "+79000000011", "A flash call ignores the requested code: the provider uses and returns another."
    CALLBACK_TWICE = "+79000000012", "Each callback of a reverse call is sent twice, both at the same moment."
    CALLBACK_OF_ANOTHER = "+79000000013", "The confirming callback of a reverse call has another caller's number."
    CALLBACK_AS_FORM = "+79000000014", "Callbacks are form fields; for other numbers JSON and form fields alternate."
