"""The domain events, from which metrics and statistics are counted, and which are logged. Test numbers publish none."""

from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from typing import Literal, Self

from app.verification.attempts import Attempt
from app.verification.channels import Channel
from app.verification.errors import ProviderError
from app.verification.model import CallStatus, Status
from app.verification.operators import UNKNOWN, operator_of
from app.verification.phone import Phone
from app.verification.values import value


@value
class Segment:
    """What a call is counted by. ``operator`` is the one that its range of numbers is assigned to.

    Not the one that a provider may report: that is free text, known for few calls and only once they are placed.
    """

    client: str
    channel: Channel
    operator: str

    @classmethod
    @lru_cache(maxsize=1024)  # the events of one call follow each other within seconds
    def of(cls, client: str, channel: Channel, phone: Phone) -> Self:
        """Return the segment of a call."""
        return cls(client, channel, operator_of(phone) or UNKNOWN)


@value
class CallAsked:
    """A client asked for a call, by this channel first. Not published for the repetition of a request."""

    segment: Segment


@value
class VerificationStarted:
    """A new verification was started; not published for a resend."""

    segment: Segment


@value
class CallPlaced:
    """A call was placed (``initiated``), or may have been (``unconfirmed``; ``why`` is for the log)."""

    segment: Segment
    status: CallStatus
    why: str | None = None


@value
class CallNeverPlaced:
    """A call that was ``unconfirmed`` turned out not to have been placed, and was refunded."""

    segment: Segment


@value
class CallRefused:
    """The provider did not place a call, or was not asked because it is known to be unavailable."""

    channel: Channel
    error: ProviderError


@value
class NoProviderReady:
    """A start of a ``phone`` was refused because no provider could be asked; ``error`` is that of the first channel."""

    phone: Phone
    error: ProviderError


@value
class CallEnded:
    """A call reached a final state; published once for each call."""

    segment: Segment
    status: CallStatus


@value
class UnknownCallStatus:
    """The provider reported a call status that is not known here; the call counts as still in progress."""

    channel: Channel


@value
class LimitHit:
    """A limit refused a start of a ``phone``, or a check, for ``retry_after`` seconds.

    ``call_cooldown`` and ``fraud_guard`` are among the names.
    """

    name: str
    operation: Literal["start", "check"]
    retry_after: int
    phone: Phone | None = None


@value
class VerificationSucceeded:
    """A check passed; the segment is that of the call whose code was right, or which the person made."""

    segment: Segment


@value
class CodeRejected:
    """A wrong code was checked; the verification is ``pending`` or, after its last one, ``locked``."""

    status: Status


@value
class VerificationCanceled:
    """A verification was canceled."""


@value
class BalanceChanged:
    """The balance at the provider was read again, and has changed by ``rub``: calls made it fall, a top-up rise."""

    rub: Decimal


@value
class AttemptFinished:
    """Nothing happens to an attempt any more; published once for each, twice after a failure."""

    attempt: Attempt


DomainEvent = (
    CallAsked
    | VerificationStarted
    | CallPlaced
    | CallNeverPlaced
    | CallRefused
    | NoProviderReady
    | CallEnded
    | UnknownCallStatus
    | LimitHit
    | VerificationSucceeded
    | CodeRejected
    | VerificationCanceled
    | BalanceChanged
    | AttemptFinished
)

Publish = Callable[[DomainEvent], None]
"""Publishes an event; returns at once and raises nothing."""
