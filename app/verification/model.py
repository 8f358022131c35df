"""A verification and its calls, the results of starting and checking it, and the outcomes of placing a call."""

from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import ClassVar, Self

from app.verification.channels import Channel
from app.verification.errors import ProviderError
from app.verification.phone import Phone
from app.verification.policy import Quota
from app.verification.values import value


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
        """Whether the call has ended."""
        return self is CallStatus.COMPLETED or self.is_unanswered

    @property
    def is_unanswered(self) -> bool:
        """Whether the call has ended without being answered."""
        return self in {CallStatus.BUSY, CallStatus.NO_ANSWER, CallStatus.FAILED}


class Lang(StrEnum):
    """The language in which a code is spoken."""

    RU = "ru"
    EN = "en"


@value
class Consent:
    """The client's proof that the subscriber agreed to be called: to which ``version`` of its text, and when."""

    version: str
    at: datetime


@value
class CallState:
    """The state of a call. ``provider_status`` is the provider's own text, where it is not a known status."""

    status: CallStatus
    provider_status: str | None = None


@value
class Call:
    """One call of a verification.

    ``call_number`` is unique within it; ``ref`` is the provider's id of the call. ``dial`` is the number that the
    person is to call, for a ``reverse_call``. ``expires_at`` is when its code expires. ``limits_token`` names the event
    that was counted for it in the limits, if it may have to be refunded.
    """

    call_number: int
    state: CallState
    ref: str | None = None
    channel: Channel = Channel.VOICE
    dial: Phone | None = None
    expires_at: datetime | None = None
    limits_token: str | None = None


@value
class Verification:
    """A verification as it was at ``observed_at``, by the store's clock. ``calls`` are oldest first.

    ``channel`` and ``code_length`` (None: there is no code) are those of the latest call. ``version`` grows with each
    change. ``reference`` is the client's own name for it, ``consent`` the latest that the client gave.
    """

    _: KW_ONLY
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
    reference: str | None = None
    consent: Consent | None = None

    @property
    def status(self) -> Status:
        """``failed`` once no call is left and none of those placed was answered; else as stored."""
        if self.stored_status is not Status.PENDING or self.calls_left:
            return self.stored_status
        unanswered = all(call.state.status.is_unanswered for call in self.calls)
        return Status.FAILED if unanswered else Status.PENDING

    @property
    def latest_call(self) -> Call | None:
        """The last call, or None if none was placed."""
        return self.calls[-1] if self.calls else None

    def call(self, call_number: int) -> Call | None:
        """Return the call with this number, or None."""
        return next((call for call in self.calls if call.call_number == call_number), None)

    @property
    def expires_in(self) -> int:
        """Whole seconds until the latest code expires."""
        return self._seconds_until(self.expires_at)

    @property
    def resend_in(self) -> int | None:
        """Whole seconds until a resend is allowed; None if this verification allows no other call."""
        if self.stored_status is not Status.PENDING or not self.calls_left:
            return None
        return self._seconds_until(self.resend_at) if self.resend_at else 0

    def with_latest_call(self, state: CallState, ref: str | None, dial: Phone | None = None) -> Self:
        """Return a copy whose latest call has the given state."""
        latest = self.calls[-1]
        latest = Call(latest.call_number, state, ref, latest.channel, dial, latest.expires_at)
        return replace(self, calls=(*self.calls[:-1], latest))

    def without_lost_calls(self, *, lifetime: timedelta, call_timeout: timedelta) -> Self:
        """Return a copy in which calls without an outcome are ``unconfirmed`` once ``call_timeout`` has passed.

        The process that was placing such a call has died, before or after the provider was asked.
        """
        newest_lost = self.observed_at + lifetime - call_timeout  # by the expiry of its code

        def is_lost(call: Call) -> bool:
            is_begun = call.state.status is CallStatus.INITIATED and call.ref is None
            return is_begun and call.expires_at is not None and call.expires_at < newest_lost

        unconfirmed = CallState(CallStatus.UNCONFIRMED)
        calls = [replace(call, state=unconfirmed) if is_lost(call) else call for call in self.calls]
        return replace(self, calls=tuple(calls))

    def _seconds_until(self, moment: datetime) -> int:
        return max(0, ceil((moment - self.observed_at).total_seconds()))


@value
class Started:
    """A verification whose call was placed, or may have been, and what remains of the limits that it counts against."""

    verification: Verification
    quotas: tuple[Quota, ...] = ()


@value
class _Check:
    """An evaluated check, what remains of the limits on failed checks, and the verification's ``reference``."""

    verification_id: str
    quotas: tuple[Quota, ...] = field(default=(), kw_only=True)
    reference: str | None = field(default=None, kw_only=True)


@value
class CheckPassed(_Check):
    """The code was right, or the person has made the reverse call; ``channel`` is that of the call.

    ``is_repeated``: the same request had passed before, and its answer was lost.
    """

    status: ClassVar = Status.VERIFIED
    phone: Phone
    purpose: str
    channel: Channel
    test: bool = False
    is_repeated: bool = False


@value
class WrongCode(_Check):
    """The code was wrong; ``checks_left`` more may be tried."""

    status: ClassVar = Status.PENDING
    checks_left: int


@value
class Waiting(_Check):
    """The person has not made the reverse call yet."""

    status: ClassVar = Status.PENDING
    checks_left: int


@value
class Locked(_Check):
    """The code was wrong and the last that could be tried; ``retry_after`` seconds until a new start is allowed."""

    status: ClassVar = Status.LOCKED
    retry_after: int


@value
class Verified(_Check):
    """The check passed; ``token`` is the signed proof of it, valid for ``token_lifetime``."""

    status: ClassVar = Status.VERIFIED
    phone: Phone
    purpose: str
    token: str
    token_lifetime: timedelta
    test: bool = False


CheckOutcome = CheckPassed | WrongCode | Waiting | Locked
"""The outcome of a check in the store."""

CheckResult = Verified | WrongCode | Waiting | Locked
"""The result of a check for the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a token proves until ``expires_at``: possession of ``phone``, for ``purpose`` and ``reference``.

    The token of a test number (``test``) proves nothing.
    """

    phone: Phone
    purpose: str
    verification_id: str
    expires_at: datetime
    test: bool = False
    reference: str | None = None


@value
class Placed:
    """The provider accepted the call; ``call_ref`` is its id there.

    ``code`` is set where the provider chose it, and replaces the one that was sent. ``operator`` is the phone's, by the
    provider's data; ``dial`` is the number to call, for a ``reverse_call``.
    """

    call_ref: str
    code: str | None = None
    operator: str | None = None
    dial: Phone | None = None


@value
class Refused:
    """The call was definitely not placed; ``error`` says why."""

    error: ProviderError


@value
class Unknown:
    """The request was sent and no clear answer came: the call may have been placed. ``why`` is for the log.

    ``call_ref`` is set where the status of the call can be fetched nevertheless.
    """

    why: str
    call_ref: str | None = None


CallOutcome = Placed | Refused | Unknown


@dataclass(frozen=True, slots=True)
class ProviderAccount:
    """An account at the provider, without its tokens."""

    id: str
    name: str
