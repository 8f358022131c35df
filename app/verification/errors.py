"""The errors of the domain. They carry facts; the HTTP edge decides which status each becomes.

VerificationError
├── PhoneNotCallable, NotAllowed
├── VerificationNotFound, VerificationAlreadyUsed, VerificationAlreadyCanceled
├── CodeRequired, CodeNotExpected, CodeTooShortOrLong
├── IdempotencyKeyReused (in idempotency.py)
├── RetryLater
│   ├── LimitReached: CallCooldown, CallBudgetExhausted, RateLimited
│   └── VerificationLocked, IdempotencyInProgress (in idempotency.py), TooManyListeners
├── ProviderError: ProviderRejected, ProviderUnavailable (also a RetryLater), BalanceTooLow
├── TokenInvalid, TokenExpired, TokenAlreadyRedeemed
└── StoreUnavailable
"""

from enum import StrEnum
from typing import ClassVar


class VerificationError(Exception):
    """Base of all errors that a caller can act on."""


class RetryLater(VerificationError):
    """Base of the errors that end in ``retry_after`` seconds."""

    def __init__(self, *facts: object, retry_after: int) -> None:
        super().__init__(*(facts or (retry_after,)))
        self.retry_after = retry_after


class TooManyListeners(RetryLater):
    """The limit on event streams of a verification, of a client or in all is reached."""


class PhoneReason(StrEnum):
    """Why a phone number is not called."""

    INVALID = "invalid"
    COUNTRY = "country"
    TYPE = "type"
    DENIED = "denied"


class PhoneNotCallable(VerificationError):
    """The number is not a Russian mobile number, or the settings exclude it."""

    def __init__(self, reason: PhoneReason) -> None:
        super().__init__(reason)
        self.reason = reason


class NotAllowed(VerificationError):
    """The request field ``field`` has a value that the settings do not allow."""

    def __init__(self, field: str, allowed: frozenset[str]) -> None:
        super().__init__(field)
        self.field = field
        self.allowed = allowed


class LimitReached(RetryLater):
    """Base of the errors of limits; ``limit`` is the name."""

    limit: str


class CallCooldown(LimitReached):
    """The phone was called less than a cooldown ago. ``verification_id`` is that of the request, if it is a resend."""

    limit = "call_cooldown"

    def __init__(self, *, retry_after: int, verification_id: str | None) -> None:
        super().__init__(retry_after=retry_after)
        self.verification_id = verification_id


class RateLimited(LimitReached):
    """The limit named ``limit`` is used up."""

    def __init__(self, *, limit: str, retry_after: int) -> None:
        super().__init__(limit, retry_after=retry_after)
        self.limit = limit


class CallBudgetExhausted(LimitReached):
    """The calls of a day, of all clients together, are used up."""

    limit = "calls_per_day"


class VerificationNotFound(VerificationError):
    """The verification is unknown, expired, or another client's: deliberately one error."""


class VerificationAlreadyUsed(VerificationError):
    """The verification has succeeded before."""


class VerificationAlreadyCanceled(VerificationError):
    """The verification was canceled before."""


class CodeRequired(VerificationError):
    """The check has no code, and the verification is not a reverse call."""


class CodeNotExpected(VerificationError):
    """The check has a code, and the verification is a reverse call, which has none."""


class CodeTooShortOrLong(VerificationError):
    """No valid code has as many digits; ``lengths`` are those that they have."""

    def __init__(self, lengths: frozenset[int]) -> None:
        super().__init__(sorted(lengths))
        self.lengths = lengths


class VerificationLocked(RetryLater):
    """No check is left. A new verification can be started after ``retry_after`` seconds."""


class ProviderError(VerificationError):
    """The provider did not place a call, or gave no data. Metrics and statistics count errors by ``kind``.

    ``reason`` says more in the log, without secrets: the provider's own words, or which step of a request failed.
    """

    kind: ClassVar = "other"
    reason = ""


class ProviderRejected(ProviderError):
    """The provider refused the request; ``message`` is its own text, without secrets."""

    kind = "rejected"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = self.reason = message


class ProviderUnavailable(ProviderError, RetryLater):
    """The provider was not reached, or its answer was unreadable."""

    kind = "unavailable"

    def __init__(self, *, retry_after: int, reason: str = "") -> None:
        super().__init__(retry_after=retry_after)
        self.reason = reason


class BalanceTooLow(ProviderError):
    """The provider's account cannot pay for the call."""

    kind = "balance_too_low"


REFUSAL_KINDS = tuple(each.kind for each in (ProviderRejected, ProviderUnavailable, BalanceTooLow, ProviderError))


class TokenInvalid(VerificationError):
    """Not a token of this service for this client and purpose: forged, foreign or malformed, one error for all."""


class TokenExpired(VerificationError):
    """The token has expired."""


class TokenAlreadyRedeemed(VerificationError):
    """The token was redeemed before."""


class StoreFailure(StrEnum):
    """Why Redis did not run a command."""

    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    CONNECTION_LOST = "connection_lost"
    REPLICA = "replica"
    LOADING = "loading"
    OUT_OF_MEMORY = "out_of_memory"
    CANNOT_SAVE = "cannot_save"
    TOO_FEW_REPLICAS = "too_few_replicas"
    CLUSTER = "cluster"
    BUSY = "busy"
    ACCESS_DENIED = "access_denied"
    OTHER = "other"


class StoreUnavailable(VerificationError):
    """Redis did not run a command; after a timeout or a lost connection it may have run it."""

    def __init__(self, reason: StoreFailure = StoreFailure.OTHER) -> None:
        super().__init__(reason)
        self.reason = reason
