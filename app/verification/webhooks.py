"""What clients are told of their verifications, and what the domain asks of the place where that waits for delivery."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from app.verification.phone import Phone


class EventType(StrEnum):
    """What can happen that a client is told of."""

    CREATED = "verification.created"
    VERIFIED = "verification.verified"
    LOCKED = "verification.locked"
    CANCELED = "verification.canceled"
    EXPIRED = "verification.expired"
    CALL_STATUS_CHANGED = "call.status_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a verification of ``client``, with the facts of that moment. ``id`` is never reused.

    The words are those of whoever wrote it down, as text: a worker older than they are delivers it all the same.
    """

    id: str
    type: str
    client: str
    verification_id: str
    purpose: str
    channel: str
    phone: Phone
    status: str
    call_status: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An event that is this worker's to deliver; ``attempts`` failed before, the last with ``error``."""

    entry: str
    event: Event
    attempts: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that was given up after ``attempts``, the last of which failed with ``error``."""

    event: Event
    attempts: int
    error: str
    died_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """How delivery stands.

    ``lag`` is how long the oldest event has waited beyond its time (a pause before another try is no lag). ``queued``
    are to be delivered now, those in flight included; ``retries`` wait for another try; ``dead`` were given up.
    """

    lag: timedelta
    queued: int
    retries: int
    dead: int


class Outbox(Protocol):
    """Keeps events until they are delivered; each method is one atomic step. All raise StoreUnavailable.

    An event that was taken and not settled, by ``done`` or ``set_aside``, is given to another worker after a while.
    """

    async def take(self, count: int) -> Sequence[Delivery]:
        """Take up to ``count`` events that are to be delivered now."""

    async def done(self, delivery: Delivery) -> None:
        """Forget an event that was delivered, or that nobody wants."""

    async def set_aside(self, delivery: Delivery, *, attempts: int, error: str, pause: timedelta | None) -> bool:
        """Keep an event until after ``pause``; without one, among the dead letters.

        Returns whether it will be tried again: it may be dead all the same, where too many wait already.
        """

    async def backlog(self) -> Backlog:
        """Return how delivery stands; cheap."""


class DeadLetters(Protocol):
    """The events that were given up. All methods raise StoreUnavailable."""

    async def dead_letters(self) -> Sequence[DeadLetter]:
        """List them, the oldest first."""

    async def resend(self, event_id: str) -> bool:
        """Have one delivered again, with all attempts before it; false where there is none of that id."""

    async def resend_all(self) -> int:
        """Have all delivered again that are there now; tell how many."""
