"""What happens, told as facts to whoever counts: metrics and statistics hang here. Test numbers are not told of."""

from collections.abc import Callable
from dataclasses import dataclass

from app.verification.channels import Channel
from app.verification.errors import ProviderError
from app.verification.model import CallStatus, Status


@dataclass(frozen=True, slots=True)
class VerificationStarted:
    """A new verification, by its first call; not a resend."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class CallPlaced:
    """A call that was placed (``initiated``), or may have been (``unconfirmed``)."""

    channel: Channel
    status: CallStatus


@dataclass(frozen=True, slots=True)
class CallRefused:
    """A call that the provider did not place, or for which it was not even asked."""

    channel: Channel
    error: ProviderError


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call reached a final state; told once for each call."""

    channel: Channel
    status: CallStatus


@dataclass(frozen=True, slots=True)
class UnknownCallStatus:
    """The provider told the state of a call in a word that is not known here; it reads as still under way."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class LimitHit:
    """A start or a check that a limit refused, ``call_cooldown`` and ``fraud_guard`` among them."""

    name: str


@dataclass(frozen=True, slots=True)
class CodeChecked:
    """A check that was evaluated: ``verified``, ``pending`` (a wrong code) or ``locked`` (the last wrong one)."""

    status: Status


@dataclass(frozen=True, slots=True)
class VerificationCanceled:
    """A verification was called off."""


DomainEvent = (
    VerificationStarted
    | CallPlaced
    | CallRefused
    | CallEnded
    | UnknownCallStatus
    | LimitHit
    | CodeChecked
    | VerificationCanceled
)

Publish = Callable[[DomainEvent], None]
"""Is told what happens; returns at once and raises nothing."""
