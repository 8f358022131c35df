"""The domain events, from which metrics and statistics are counted, and which are logged. Test numbers publish none."""

from collections.abc import Callable
from typing import Literal

from app.verification.attempts import Attempt
from app.verification.channels import Channel
from app.verification.errors import ProviderError
from app.verification.model import CallStatus, Status
from app.verification.phone import Phone
from app.verification.values import value


@value
class VerificationStarted:
    """A new verification was started; not published for a resend."""

    channel: Channel


@value
class CallPlaced:
    """A call was placed (``initiated``), or may have been (``unconfirmed``; ``why`` is for the log)."""

    channel: Channel
    status: CallStatus
    why: str | None = None


@value
class CallRefused:
    """The provider did not place a call, or was not asked because it is known to be unavailable."""

    channel: Channel
    error: ProviderError


@value
class CallEnded:
    """A call reached a final state; published once for each call."""

    channel: Channel
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
class CodeChecked:
    """A check was evaluated: ``verified``, ``pending`` (a wrong code) or ``locked`` (the last wrong one)."""

    status: Status


@value
class VerificationCanceled:
    """A verification was canceled."""


@value
class AttemptFinished:
    """Nothing happens to an attempt any more; published once for each, twice after a failure."""

    attempt: Attempt


DomainEvent = (
    VerificationStarted
    | CallPlaced
    | CallRefused
    | CallEnded
    | UnknownCallStatus
    | LimitHit
    | CodeChecked
    | VerificationCanceled
    | AttemptFinished
)

Publish = Callable[[DomainEvent], None]
"""Publishes an event; returns at once and raises nothing."""
