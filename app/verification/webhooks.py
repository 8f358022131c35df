"""Webhook events, and the port of the outbox that holds them until delivery."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from app.verification.phone import Phone


class EventType(StrEnum):
    """The types of webhook events."""

    CREATED = "verification.created"
    CALL_STATUS_CHANGED = "call.status_changed"
    VERIFIED = "verification.verified"
    LOCKED = "verification.locked"
    CANCELED = "verification.canceled"
    EXPIRED = "verification.expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A webhook event of a verification of ``client``, with its data of that moment. ``id`` is never reused.

    ``type``, ``channel`` and the states are text, so that a worker of an older version delivers new ones as well.
    """

    id: str
    type: str
    client: str
    verification_id: str
    purpose: str
    reference: str | None
    channel: str
    phone: Phone
    status: str
    call_status: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An event taken for delivery; ``attempts`` failed before, the last with ``error``."""

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


class Outbox(Protocol):
    """Stores events until they are delivered; each method is one atomic step. All raise StoreUnavailable.

    An event that was taken, and neither ``done`` nor ``set_aside``, is taken by another worker after a while.
    """

    async def take(self, count: int) -> Sequence[Delivery]:
        """Take up to ``count`` events that are to be delivered now. Must be called regularly, also with 0."""

    async def done(self, delivery: Delivery) -> None:
        """Delete an event that was delivered, or that no endpoint wants."""

    async def set_aside(self, delivery: Delivery, *, attempts: int, error: str, pause: timedelta | None) -> bool:
        """Retry an event after ``pause``; without one, make it a dead letter.

        Return whether it will be retried: it becomes a dead letter also where too many wait already.
        """
