"""What the HTTP edge asks of the store so that it can tell of a change when it happens."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from app.verification.errors import RetryLater


class TooManyListeners(RetryLater):
    """As many listen as may, to one verification, for one client or in all; try again in ``retry_after`` s."""


class Feed(Protocol):
    """Tells one listener that a verification may have changed."""

    async def changed(self, seconds: float) -> bool:
        """Wait for a change, at most so many seconds; several at once are told as one.

        True may be told without a change (messages may have been lost), false with one (the store may be away): only
        reading tells.
        """


class Changes(Protocol):
    """Tells of the changes of verifications, whoever makes them."""

    def listen(self, verification_id: str, *, client: str) -> AbstractAsyncContextManager[Feed]:
        """Listen to one verification for a client, from entering to leaving. A change after entering is told.

        Raises TooManyListeners on entering.
        """
