"""What a verification is: its states, its calls, and what a provider can answer when asked to place one."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import Self

from app.verification.channels import Channel
from app.verification.errors import ProviderError
from app.verification.phone import Phone
from app.verification.policy import Quota


class Status(StrEnum):
    """The state of a verification."""

    PENDING = "pending"
    VERIFIED = "verified"
    LOCKED = "locked"
    CANCELED = "canceled"
    FAILED = "failed"


class CallStatus(StrEnum):
    """The state of one call. ``unconfirmed``: the provider did not answer, so it may or may not have been placed."""

    INITIATED = "initiated"
    UNCONFIRMED = "unconfirmed"
    RINGING = "ringing"
    ANSWERED = "answered"
    COMPLETED = "completed"
    BUSY = "busy"
    NO_ANSWER = "no_answer"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """A call in this state stays in it."""
        return self is CallStatus.COMPLETED or self.is_unanswered

    @property
    def is_unanswered(self) -> bool:
        """The call is over, and nobody heard a code in it."""
        return self in {CallStatus.BUSY, CallStatus.NO_ANSWER, CallStatus.FAILED}


class Lang(StrEnum):
    """The language in which a code is spoken."""

    RU = "ru"
    EN = "en"


@dataclass(frozen=True, slots=True)
class CallState:
    """The provider's word on a call. ``provider_status`` is set where it used a word that we do not know."""

    status: CallStatus
    provider_status: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a verification. ``serial`` is never used twice within it; ``ref`` is the provider's own name.

    ``dial`` is the number that the person is to call, for a ``reverse_call``. ``expires_at`` is when nothing of this
    call verifies any more. ``limits_token`` names the event under which it was counted, if it may be given back.
    """

    call_number: int
    state: CallState
    ref: str | None = None
    channel: Channel = Channel.VOICE
    dial: Phone | None = None
    expires_at: datetime | None = None
    limits_token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A verification as the store saw it at ``observed_at``, by the store's clock. ``calls`` are oldest first.

    ``channel`` and ``code_length`` (none: there is no code) are those of the latest call. ``version`` grows with each
    change.
    """

    id: str
    client: str
    purpose: str
    channel: Channel
    phone: Phone
    code_length: int | None
    stored_status: Status
    calls_placed: int
    calls_left: int
    checks_left: int
    calls: tuple[Call, ...]
    created_at: datetime
    expires_at: datetime
    resend_at: datetime | None
    observed_at: datetime
    version: int = 0
    test: bool = False

    @property
    def status(self) -> Status:
        """``failed`` once no call is left and none of those placed can have been heard; else as stored."""
        if self.stored_status is Status.PENDING and not self.calls_left and self._none_heard:
            return Status.FAILED
        return self.stored_status

    @property
    def _none_heard(self) -> bool:
        return all(call.state.status.is_unanswered for call in self.calls)

    @property
    def latest_call(self) -> Call | None:
        """The last call, if any was placed."""
        return self.calls[-1] if self.calls else None

    def call(self, call_number: int) -> Call | None:
        """Return a call of this verification, if there is one with this serial."""
        return next((call for call in self.calls if call.call_number == call_number), None)

    @property
    def expires_in(self) -> int:
        """Whole seconds until the last code given expires."""
        return self._seconds_until(self.expires_at)

    @property
    def resend_in(self) -> int | None:
        """Whole seconds until another call may be asked for; none if there will be none in this verification."""
        if self.stored_status is not Status.PENDING or not self.calls_left:
            return None
        return self._seconds_until(self.resend_at) if self.resend_at else 0

    def with_latest_call(self, state: CallState, ref: str | None, dial: Phone | None = None) -> Self:
        """Show the latest call in another state than the store knows of yet."""
        return replace(self, calls=(*self.calls[:-1], replace(self.calls[-1], state=state, ref=ref, dial=dial)))

    def without_lost_calls(self, *, lifetime: timedelta, patience: timedelta) -> Self:
        """Show calls of which nothing was heard although the provider's time is over as ``unconfirmed``.

        Whoever placed them has died, before or after it did.
        """
        return replace(self, calls=tuple(self._told(call, lifetime - patience) for call in self.calls))

    def _told(self, call: Call, left: timedelta) -> Call:
        lost = (
            call.state.status is CallStatus.INITIATED
            and call.ref is None
            and call.expires_at is not None
            and call.expires_at - self.observed_at < left
        )
        return replace(call, state=CallState(CallStatus.UNCONFIRMED)) if lost else call

    def _seconds_until(self, moment: datetime) -> int:
        return max(0, ceil((moment - self.observed_at).total_seconds()))


@dataclass(frozen=True, slots=True)
class Started:
    """A verification whose call was placed, or may have been, and what remains of the limits it counts against."""

    verification: Verification
    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What became of one evaluated code: ``verified``, ``pending`` (wrong, try again) or ``locked`` (wrong, the last).

    ``phone`` and ``purpose`` are told only for the right code, ``retry_after`` (seconds) only when locked. A check that
    ``is_repeated`` had verified before, and its answer was lost.
    """

    verification_id: str
    status: Status
    checks_left: int = 0
    purpose: str | None = None
    phone: Phone | None = None
    retry_after: int | None = None
    quotas: tuple[Quota, ...] = ()
    test: bool = False
    is_repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a token proves: that somebody held ``phone``, for ``purpose``; nothing any more from ``expires_at`` on.

    That of a test number (``test``) proves nothing.
    """

    phone: Phone
    purpose: str
    verification_id: str
    expires_at: datetime
    test: bool = False


@dataclass(frozen=True, slots=True)
class Placed:
    """The provider took the call and named it ``call_ref``.

    ``code`` is set where the provider chose it: then it counts, whatever was asked for. ``operator`` is the phone's, as
    the provider says; ``dial`` the number to be called, for a ``reverse_call``.
    """

    call_ref: str
    code: str | None = None
    operator: str | None = None
    dial: Phone | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The call definitely did not happen; ``error`` says why."""

    error: ProviderError


@dataclass(frozen=True, slots=True)
class Unknown:
    """The request was sent and no clear answer came: the call may have happened. ``why`` is for the log.

    ``call_ref`` is set where the call can be looked up all the same.
    """

    why: str
    call_ref: str | None = None


CallOutcome = Placed | Refused | Unknown


@dataclass(frozen=True, slots=True)
class ProviderAccount:
    """An account at the provider, without its tokens."""

    id: str
    name: str
