"""What can go wrong in the virtual telephone network.

NetworkError
├── CallRefused    said no, with a message
├── NoAccess       the "no access" of the vendor's pages
├── NoReply        the answer never comes; the call may have been placed all the same
├── CallUnknown    no call by that name, or one long forgotten
├── NobodyWaits    a phone dialled, and no reverse call waits for it
└── WrongNumber    a phone dialled, but not the number that it was told
"""


class NetworkError(Exception):
    """Base of all that can go wrong in the network."""


class CallRefused(NetworkError):
    """The call was not placed; ``message`` says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NoAccess(NetworkError):
    """The call was not placed, for want of some right."""


class NoReply(NetworkError):
    """Whoever asked gets no answer, whether or not the call was placed."""


class CallUnknown(NetworkError):
    """There is no such call, or it was forgotten."""


class NobodyWaits(NetworkError):
    """No reverse call waits for this phone: none was asked for, it was dialled, or its five minutes are over."""


class WrongNumber(NetworkError):
    """A reverse call waits for this phone, at another number than the one dialled."""
