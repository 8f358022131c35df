"""What the domain asks of the world around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol, Self

from app.verification.channels import Channel
from app.verification.model import (
    CallOutcome,
    CallState,
    CallStatus,
    CheckResult,
    Lang,
    Proof,
    ProviderAccount,
    Started,
    Verification,
)
from app.verification.phone import Phone
from app.verification.policy import Allowance, Policy, Quota


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCall:
    """A call about to be placed: for whom, to whom, what for, and the digest of its code.

    ``resend_of`` is the id of the verification that is called again; without it the call is of a new one. ``checks`` is
    how many guesses the verification allows by this channel. ``address`` is the end user's. ``token`` is of the start
    that places it, for ``refund``. ``test`` is a call that nobody places: it has no cooldown and counts against no
    limit of the phone.
    """

    client: str
    phone: Phone
    purpose: str
    channel: Channel
    code_digest: bytes | None
    code_length: int | None
    checks: int
    resend_of: str | None = None
    address: str | None = None
    token: str = ""
    test: bool = False


@dataclass(frozen=True, slots=True)
class CallId:
    """Names one call of all: the verification that it belongs to, and its serial there."""

    verification_id: str
    call_number: int

    def __str__(self) -> str:
        return f"{self.verification_id}:{self.call_number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` made of one."""
        verification_id, _, call_number = text.rpartition(":")
        return cls(verification_id, int(call_number))


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeCheck:
    """A code to be checked: whose client, under which keys it may have been made, and from which address it came.

    ``length`` is how many digits it has; of no code there are no candidates, and no length. ``retry_digest`` is a keyed
    digest of the request, where it has an ``Idempotency-Key``: the check that verifies, repeated, verifies again.
    """

    client: str
    candidates: Sequence[bytes]
    length: int = 0
    address: str | None = None
    retry_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallUpdate:
    """What is known of a call: its state, and, if it was just placed, what came with the provider's answer.

    ``code_digest`` and ``code_length`` are of a code that the provider chose; ``limits_token`` names the event under
    which the call was counted, where it may turn out later that it never was placed.
    """

    state: CallState
    ref: str | None = None
    code_digest: bytes | None = None
    code_length: int | None = None
    dial: Phone | None = None
    operator: str | None = None
    limits_token: str | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """A verification after a report on one of its calls, and whether the call has come to its end by this report."""

    verification: Verification
    ended: bool


@dataclass(frozen=True, slots=True)
class CallHistory:
    """What is known of a phone before another call: its operator, and the calls by which nobody was verified yet."""

    operator: str | None
    calls: Sequence[tuple[Channel, CallStatus]]


@dataclass(frozen=True, slots=True)
class StartPreview:
    """What a start would do: the call that it would place, and what was tried with the phone before."""

    name: CallId
    history: CallHistory


class Confirmation(StrEnum):
    """What became of a hook that says that a person dialled the number of a reverse call."""

    CONFIRMED = "confirmed"
    CONFIRMED_BEFORE = "confirmed_before"
    NOT_FOUND = "not_found"
    NOT_THE_CALLER = "not_the_caller"
    TOO_EARLY = "too_early"


class VerificationStore(Protocol):
    """Keeps verifications; each method is one atomic step. All raise StoreUnavailable."""

    async def preview_start(self, call: NewCall, policy: Policy) -> StartPreview:
        """Return what a start would do, and change nothing. Raises as ``start`` does."""
        ...

    async def start(self, name: CallId, call: NewCall, policy: Policy) -> Started:
        """Store the digest of a call about to be placed, which ``preview_start`` named.

        A reverse call always is of a new verification, which is not found by phone, and of a phone there is one at a
        time. Counts the call against the limits of the phone.

        Raises CallCooldown, RateLimited (``calls_per_verification``, ``calls_per_phone_…``, or ``failed_checks_per_…``:
        its code could not be checked) or VerificationNotFound (``resend_of`` is not pending, or not of this client,
        phone and purpose).
        """
        ...

    async def record_call(self, verification: Verification, call_number: int, update: CallUpdate) -> Recorded:
        """Write what became of a call, which never goes back to an earlier stage.

        Raises VerificationNotFound if it expired meanwhile.
        """
        ...

    async def confirm(
        self, verification: Verification, call_number: int, *, ref: str, caller: Phone, policy: Policy
    ) -> Confirmation:
        """Write that the person dialled the number of a reverse call. Harmless when repeated."""
        ...

    async def refund(
        self, name: CallId, *, phone: Phone, client: str, policy: Policy, token: str | None = None
    ) -> bool:
        """Undo a call that did not happen: its code, its place in the count, its cooldown. Tells whether it was now.

        With a ``token`` only the call of that start is undone, and only before it is recorded as placed.
        """
        ...

    async def check_by_id(self, verification_id: str, guess: CodeCheck, policy: Policy) -> CheckResult:
        """Count the check, compare, consume; a wrong one counts against the limits of failed checks too.

        Without candidates no code was given: whether the person has dialled is told, and consumed, and costs nothing.
        The check that verified, repeated with its ``retry_digest``, verifies again.

        Raises VerificationNotFound, VerificationAlreadyUsed, VerificationCanceled, VerificationLocked, RateLimited, or
        CodeRequired, CodeNotExpected or CodeTooShortOrLong.
        """
        ...

    async def check_by_phone(self, phone: Phone, purpose: str, guess: CodeCheck, policy: Policy) -> CheckResult:
        """Do as ``check_by_id`` does, for all pending verifications of this phone and purpose that have a code.

        A right code verifies its own; a wrong one counts against the latest, and for the phone once for each live code.
        """
        ...

    async def read(self, verification_id: str, *, client: str | None) -> Verification:
        """Read a verification of a client, or of whoever's it is. Raises VerificationNotFound."""
        ...

    async def cancel(self, client: str, verification_id: str) -> Verification:
        """Make a pending verification canceled (again: no change).

        Raises VerificationNotFound, VerificationAlreadyUsed or VerificationLocked.
        """
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...


class RateLimiter(Protocol):
    """Counts calls against limits over other things than the phone. All methods raise StoreUnavailable."""

    async def require_room(self, allowances: Sequence[Allowance]) -> None:
        """Return if each has room for one event; count nothing. Raises as ``acquire`` does."""
        ...

    async def acquire(self, token: str, allowances: Sequence[Allowance]) -> Sequence[Quota]:
        """Count one event, named by ``token``, against each.

        Raises RateLimited or CallBudgetExhausted: one has no room; ``refund`` frees the others.
        """
        ...

    async def refund(self, token: str, allowances: Sequence[Allowance]) -> None:
        """Take the event back. Harmless when repeated, or when it was never counted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOrder:
    """A call to be placed.

    ``name`` is this service's own and belongs to no other call. ``code`` is none where the channel needs none. ``lang``
    and ``repeat`` are for a code that is spoken. ``within`` is how many seconds are left to
    place it, where that is less than the sender has by itself.
    """

    name: CallId
    phone: Phone
    code: str | None
    lang: Lang
    repeat: int
    within: float | None = None


class CallSchedule(Protocol):
    """Remembers which calls are to be looked up."""

    async def schedule(self, name: CallId, delay: timedelta) -> None:
        """Have a call looked up after a while, and until it has ended. Raises StoreUnavailable."""
        ...


class CallSender(Protocol):
    """One channel of one provider: places calls, and tells what became of them."""

    @property
    def provider(self) -> str:
        """Whose it is: a channel of another provider may work where this one does not."""
        ...

    @property
    def supports_status(self) -> bool:
        """Whether calls can be looked up."""
        ...

    def require_ready(self) -> None:
        """Return if a call may be placed now, as far as that is known here without asking. Raises ProviderError."""
        ...

    async def place(self, order: CallOrder) -> CallOutcome:
        """Place a call, once. Never raises for what the provider or the network does."""
        ...

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call, or none if it was never placed. Raises ProviderError."""
        ...


class ProviderAccounts(Protocol):
    """Tells of the account that pays for the calls."""

    async def get_account(self) -> Sequence[ProviderAccount]:
        """Return the accounts, without their tokens. Raises ProviderError."""
        ...

    async def get_balance(self) -> Decimal:
        """Return the balance in RUB. Raises ProviderError."""
        ...


class ProofTokens(Protocol):
    """Writes proofs down as signed tokens, and reads them back."""

    @property
    def lifetime(self) -> timedelta:
        """How long a new token is good."""
        ...

    @property
    def jwks(self) -> dict[str, Any]:
        """The public keys, with which anybody verifies a token."""
        ...

    def sign(self, *, phone: Phone, purpose: str, verification_id: str, client: str, test: bool = False) -> str:
        """Make the token that tells ``client`` of a verification that succeeded."""
        ...

    def verify(self, token: str, *, client: str) -> Proof:
        """Read a token. Raises TokenInvalid or TokenExpired."""
        ...


class Redemptions(Protocol):
    """Remembers which tokens were redeemed."""

    async def redeem(self, verification_id: str, expires_at: datetime) -> bool:
        """Return whether this is the first redemption of a verification's token: true exactly once, however many ask.

        Raises TokenInvalid if there can be no such verification, TokenExpired, or StoreUnavailable: it may have been
        the first.
        """
        ...
