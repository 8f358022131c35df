"""The port through which event streams learn of changes."""

from typing import Protocol

from app.verification.errors import RetryLater


class TooManyListeners(RetryLater):
    """The limit on event streams of a verification, of a client or in all is reached."""


class Feed(Protocol):
    """Signals one listener that a verification may have changed."""

    async def changed(self, seconds: float) -> bool:
        """Wait for changes, at most so many seconds; several at once are one signal.

        Those before the first read with ``follow`` are seen by that read, those after it are signalled.

        True may come without a change (messages may have been lost), False with one (the store may be away): read the
        verification to know.
        """
