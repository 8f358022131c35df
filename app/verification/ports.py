"""The ports of the domain: what the use cases need of Redis, of providers and of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Protocol, Self

from app.verification.channels import Channel
from app.verification.code import CodeDigester
from app.verification.domain_events import Publish
from app.verification.errors import ProviderError
from app.verification.fraud_guard import FraudGuard
from app.verification.model import (
    CallOutcome,
    CallState,
    CallStatus,
    CheckOutcome,
    Consent,
    Lang,
    Proof,
    ProviderAccount,
    Verification,
)
from app.verification.phone import Phone
from app.verification.policy import Allowance, Policies, Policy, Quota
from app.verification.store_requests import DeferredWrites
from app.verification.test_numbers import TestNumbers
from app.verification.values import value


@value
class NewCall:
    """A call about to be placed.

    ``resend_of`` is the verification of a resend, ``checks`` the number of checks that this channel allows, ``address``
    the end user's. ``token`` identifies the start, for ``refund``. A ``test`` number has no cooldown and no limits.
    ``reference`` and ``consent`` are as in ``StartRequest``.
    """

    _: KW_ONLY
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
    reference: str | None = None
    consent: Consent | None = None


@value
class CallId:
    """The id of a call: its verification, and its number there."""

    verification_id: str
    call_number: int

    def __str__(self) -> str:
        return f"{self.verification_id}:{self.call_number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the result of ``str``."""
        verification_id, _, call_number = text.rpartition(":")
        return cls(verification_id, int(call_number))


@value
class CodeCheck:
    """A code to be checked: a digest for each key under which it may be stored (none: no code), and its length.

    ``address`` and ``retry_digest`` are those of the ``CheckRequest``.
    """

    client: str
    candidates: Sequence[bytes]
    length: int = 0
    address: str | None = None
    retry_digest: str | None = None


@value
class CallUpdate:
    """The new state of a call and, if it was just placed, what the provider answered.

    ``code_digest`` and ``code_length`` are those of a code that the provider chose. ``limits_token`` is as in ``Call``.
    """

    _: KW_ONLY
    state: CallState
    ref: str | None = None
    code_digest: bytes | None = None
    code_length: int | None = None
    dial: Phone | None = None
    operator: str | None = None
    limits_token: str | None = None


@value
class CallHistory:
    """The operator of a phone, and its calls that have verified nobody yet."""

    operator: str | None
    calls: Sequence[tuple[Channel, CallStatus]]


@value
class StartPreview:
    """The call that a start would place, and the history of the phone."""

    call_id: CallId
    history: CallHistory


class Confirmation(StrEnum):
    """The result of a provider's callback that the number of a reverse call was dialled."""

    CONFIRMED = "confirmed"
    CONFIRMED_BEFORE = "confirmed_before"
    NOT_FOUND = "not_found"
    NOT_THE_CALLER = "not_the_caller"
    TOO_EARLY = "too_early"


@value
class StoredCall:
    """A call about to be placed: its verification, what remains of the limits, and the token of a ``Reservation``."""

    verification: Verification
    quotas: tuple[Quota, ...]
    limits_token: str


class VerificationStore(Protocol):
    """Stores verifications; each method is one atomic step. All raise StoreUnavailable."""

    @property
    def counts_in_allowances(self) -> bool:
        """Whether ``start`` can count a call in allowances too: then nothing has to be asked or counted before."""

    def new_id(self, phone: Phone) -> str:
        """Return an id for a new verification of a phone."""

    async def preview_start(self, call: NewCall, policy: Policy) -> StartPreview:
        """Return what ``start`` would do, and change nothing. Raise as it does."""

    async def start(
        self, call_id: CallId, call: NewCall, policy: Policy, allowances: Sequence[Allowance] = ()
    ) -> StoredCall:
        """Store a call about to be placed, and count it in the limits of the phone, and in allowances.

        The id is that of ``preview_start``, or the first call of a ``new_id`` without a resend.

        A reverse call belongs to a new verification, which ``check_by_phone`` does not find; a phone has one at a time.

        Raise CallCooldown, RateLimited (``calls_per_verification``, ``calls_per_phone_…``, or ``failed_checks_per_…``:
        its code could not be checked) or VerificationNotFound (``resend_of`` is not pending, or not of this client,
        phone and purpose, or has another reference than the one given), or as ``RateLimiter.acquire`` does.
        """

    async def record_call(self, verification: Verification, call_number: int, update: CallUpdate) -> bool:
        """Write the state of a call, which never goes back to an earlier one. Return whether this has ended the call.

        Raise VerificationNotFound.
        """

    async def confirm(
        self, verification: Verification, call_number: int, *, ref: str, caller: Phone, policy: Policy
    ) -> Confirmation:
        """Record that ``caller`` has dialled the number of a reverse call. Idempotent."""

    async def refund(
        self,
        call_id: CallId,
        *,
        phone: Phone,
        client: str,
        policy: Policy,
        token: str | None = None,
        error: ProviderError | None = None,
        allowances: Sequence[Allowance] = (),
    ) -> bool:
        """Delete a call that was not placed, with its code, counts and cooldown. Return False if it was gone already.

        With a ``token`` only the call of that start is deleted, and only before it is recorded as placed. ``error`` is
        the provider's refusal, for the journal of attempts. A call that ``start`` has counted in ``allowances`` is
        uncounted in the same step.
        """

    async def check_by_id(self, verification_id: str, check: CodeCheck, policy: Policy) -> CheckOutcome:
        """Compare a code with those of a verification, and count it if it is wrong.

        Without candidates, see whether the person has made the reverse call; that counts nothing.

        Raise VerificationNotFound, VerificationAlreadyUsed, VerificationAlreadyCanceled, VerificationLocked,
        RateLimited, CodeRequired, CodeNotExpected or CodeTooShortOrLong.
        """

    async def check_by_phone(self, phone: Phone, purpose: str, check: CodeCheck, policy: Policy) -> CheckOutcome:
        """Compare a code with those of all pending verifications of the phone and purpose.

        A right code verifies the one that it belongs to; a wrong one counts against the latest, and for the phone once
        for each code that it was compared with. Raise as ``check_by_id`` does.
        """

    async def read(self, verification_id: str, *, client: str | None, follow: bool = False) -> Verification:
        """Return a verification of a client, or of any client without one. Raise VerificationNotFound.

        Event streams learn of its changes from the first read with ``follow`` on.
        """

    async def cancel(self, client: str, verification_id: str) -> Verification:
        """Cancel a pending verification; a canceled one stays as it is.

        Raise VerificationNotFound, VerificationAlreadyUsed or VerificationLocked.
        """


@value
class Reservation:
    """An event that is counted in limits: the token that refunds it, and what remains of each limit."""

    token: str
    quotas: Sequence[Quota]


class RateLimiter(Protocol):
    """Counts calls against the limits on other subjects than the phone, and for the fraud guard.

    All methods raise StoreUnavailable.
    """

    async def require_room(self, allowances: Sequence[Allowance]) -> None:
        """Return if ``acquire`` would succeed, and count nothing. Raise as it does.

        Ask before: it may count for a moment what it then refuses, and others lack that.
        """

    async def acquire(self, token: str, allowances: Sequence[Allowance]) -> Reservation:
        """Count one event, identified by ``token`` (12 hex digits), in each, or in none.

        Raise LimitReached for the first that is full, or RateLimited (``fraud_guard``).
        """

    async def refund(self, token: str, allowances: Sequence[Allowance]) -> None:
        """Uncount the event.

        With the token of ``acquire`` this is idempotent, also if the event was never counted; but limits on more than
        64 events and the fraud guard ignore it. They need the token of the ``Reservation``, which its owner gives once:
        a second time it would uncount another event, so not even a lost reply permits it.
        """


@value
class CallOrder:
    """A call to be placed by a provider; ``code`` is None where the channel needs none.

    ``lang`` and ``repeat`` are for a code that is spoken. ``timeout`` (seconds) may shorten the sender's own.
    """

    _: KW_ONLY
    call_id: CallId
    phone: Phone
    code: str | None
    lang: Lang
    repeat: int
    timeout: float | None = None


class CallSchedule(Protocol):
    """Schedules the following of calls. Raises StoreUnavailable."""

    async def schedule(self, call_id: CallId, delay: timedelta) -> None:
        """Follow a call after ``delay`` (minutes at most) until it has ended; replaces an earlier schedule."""


class CallSender(Protocol):
    """One channel of one provider: places calls and fetches their status."""

    @property
    def provider(self) -> str:
        """The name of the provider."""

    @property
    def supports_status(self) -> bool:
        """Whether the status of a call can be fetched."""

    def require_ready(self) -> None:
        """Return if a call may be placed now, as far as is known without a request. Raise ProviderError if not."""

    async def place(self, order: CallOrder) -> CallOutcome:
        """Place a call, once. Failures of the provider or the network are outcomes, not errors."""

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call, or None if it was never placed. Raise ProviderError."""


class ProviderAccounts(Protocol):
    """The account at the provider that pays for the calls."""

    async def get_account(self) -> Sequence[ProviderAccount]:
        """Return the accounts, without their tokens. Raise ProviderError."""

    async def get_balance(self) -> Decimal:
        """Return the balance in RUB. Raise ProviderError."""


class ProofTokens(Protocol):
    """Signs and verifies proof tokens."""

    @property
    def lifetime(self) -> timedelta:
        """How long a new token is valid."""

    def sign(
        self,
        *,
        phone: Phone,
        purpose: str,
        verification_id: str,
        client: str,
        reference: str | None = None,
        test: bool = False,
    ) -> str:
        """Return the token for ``client`` of a verification that succeeded."""

    def verify(self, token: str, *, client: str) -> Proof:
        """Return the proof in a token. Raise TokenInvalid or TokenExpired."""


class Redemptions(Protocol):
    """Stores which tokens were redeemed."""

    async def redeem(self, verification_id: str, expires_at: datetime) -> bool:
        """Return whether this is the first redemption of a verification's token: True exactly once.

        Raise TokenInvalid if there can be no such verification, TokenExpired, or StoreUnavailable (the token may have
        been redeemed).
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the use cases need. ``store_timeout`` (seconds) bounds all waits for the store in one use case."""

    store: VerificationStore
    limits: RateLimiter
    guard: FraudGuard
    senders: Mapping[Channel, CallSender]
    schedule: CallSchedule
    tokens: ProofTokens
    digester: CodeDigester
    policies: Policies
    test_numbers: TestNumbers
    publish: Publish
    deferred: DeferredWrites
    store_timeout: float
