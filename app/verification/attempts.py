"""Attempts: what became of each start that reached a phone's provider, as the journal has it.

An attempt is one call: a verification has one for each call and resend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from app.verification.model import CallStatus, Consent
from app.verification.phone import Phone


class Outcome(StrEnum):
    """What the provider made of an attempt. ``asked``: it has not answered yet."""

    ASKED = "asked"
    PLACED = "placed"
    UNCONFIRMED = "unconfirmed"
    REFUSED = "refused"


class Ending(StrEnum):
    """How a verification ended, so far."""

    PENDING = "pending"
    VERIFIED = "verified"
    LOCKED = "locked"
    CANCELED = "canceled"
    EXPIRED = "expired"


class Result(StrEnum):
    """The words by which attempts are found: an ``Outcome``, the final status of a call, or an ``Ending``."""

    ASKED = "asked"
    PLACED = "placed"
    UNCONFIRMED = "unconfirmed"
    REFUSED = "refused"
    COMPLETED = "completed"
    BUSY = "busy"
    NO_ANSWER = "no_answer"
    FAILED = "failed"
    PENDING = "pending"
    VERIFIED = "verified"
    LOCKED = "locked"
    CANCELED = "canceled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """What happened to an attempt at a moment: an ``Outcome``, a ``CallStatus``, ``wrong_code`` or an ``Ending``.

    ``reason`` says more, where there is more.
    """

    at: datetime
    event: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call of a verification; ``phone`` is masked, and ``phone_digest`` the same for all attempts to call a phone.

    ``operator`` is as in ``Segment``, ``reported_operator`` the word of the provider.
    ``reference`` and ``consent`` are those that the client has given by then, ``reference`` that of its verification.
    ``reason`` says why it was refused, by the kind and the words of the provider. ``wrong_codes`` and ``ending`` are
    those of its verification; ``ending`` is None if that has no call. ``cost_rub`` is at the price of the settings.
    """

    verification_id: str
    call_number: int
    started_at: datetime
    client: str
    purpose: str
    reference: str | None
    consent: Consent | None
    channel: str
    phone: str
    phone_digest: str
    outcome: Outcome
    reason: str
    call_ref: str | None
    operator: str
    reported_operator: str | None
    call_status: CallStatus | None
    wrong_codes: int
    ending: Ending | None
    cost_rub: Decimal
    timeline: Sequence[TimelineEntry]

    @property
    def results(self) -> Sequence[str | None]:
        """The words by which it is found."""
        return self.outcome, self.call_status, self.ending


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedStarts:
    """How many starts of one phone were refused before a provider was asked, in the hour that begins at ``hour``.

    ``reason`` is the name of the limit that refused them, or ``provider_`` and the kind of its error.
    """

    hour: datetime
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFilter:
    """Which attempts are wanted; None: any."""

    client: str | None = None
    channel: str | None = None
    operator: str | None = None
    reference: str | None = None
    result: Result | None = None

    def accepts(self, attempt: Attempt) -> bool:
        """Return whether an attempt is wanted."""
        wanted = (self.client, self.channel, self.operator, self.reference)
        found = (attempt.client, attempt.channel, attempt.operator, attempt.reference)
        return all(want in {None, have} for want, have in zip(wanted, found, strict=True)) and (
            self.result is None or self.result in attempt.results
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptPage:
    """Attempts, the latest first. Where there may be more, ``next_before`` is the ``before`` of the next page.

    A page ends early where few attempts are wanted of many.
    """

    attempts: Sequence[Attempt]
    next_before: datetime | None


class AttemptJournal(Protocol):
    """Finds attempts for as long as the journal is kept. All methods raise StoreUnavailable."""

    async def of_verification(self, verification_id: str) -> Sequence[Attempt]:
        """Return the attempts of a verification, the oldest first; none if the journal does not have it."""

    async def of_phone(self, phone: Phone, since: datetime) -> Sequence[Attempt]:
        """Return the attempts to call a phone that began at ``since`` or later, the latest first."""

    async def refused_starts(self, phone: Phone, since: datetime) -> Sequence[RefusedStarts]:
        """Return how many starts of a phone were refused since then, by the hour, the latest first."""

    async def page(self, wanted: AttemptFilter, *, since: datetime, before: datetime, most: int) -> AttemptPage:
        """Return the latest attempts that began at ``since`` or later, and before ``before``: ``most``, or a few more.

        Those of one millisecond are on one page.
        """
