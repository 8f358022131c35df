"""The port through which event streams learn of changes."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from app.verification.errors import RetryLater


class TooManyListeners(RetryLater):
    """The limit on event streams of a verification, of a client or in all is reached."""


class Feed(Protocol):
    """Signals one listener that a verification may have changed."""

    async def changed(self, seconds: float) -> bool:
        """Wait for changes, at most so many seconds; several at once are one signal.

        True may come without a change (messages may have been lost), False with one (the store may be away): read the
        verification to know.
        """


class Changes(Protocol):
    """Signals the changes of verifications, from all workers."""

    def listen(self, verification_id: str, *, client: str) -> AbstractAsyncContextManager[Feed]:
        """Listen to one verification for a client, from entering to leaving. Raise TooManyListeners on entering.

        Then read it with ``follow``: changes before that are seen by the read, and those after it are signalled.
        """
