"""What can go wrong, told in facts; the HTTP edge decides which status each becomes.

VerificationError
├── PhoneNotCallable          the number is not one that this service calls
├── NotAllowed                a well-formed value that the settings do not allow
├── CallCooldown              too soon after the last call to this phone
├── RateLimited               a limit, by its name
├── CallBudgetExhausted       all calls that everybody together may have in a day were placed
├── VerificationNotFound      unknown, expired, or somebody else's: deliberately one error
├── VerificationAlreadyUsed   its code was right once before
├── VerificationCanceled      it was called off
├── CodeRequired              a check without a code, by phone or of a verification that has one
├── CodeNotExpected           a check with a code of a verification that has none
├── CodeTooShortOrLong        a check with a code of another length
├── VerificationLocked        too many wrong codes
├── ProviderError             the provider could not do what it was asked
│   ├── ProviderRejected      it understood and said no
│   ├── ProviderUnavailable   it was not reached, or made no sense
│   └── BalanceTooLow         the account cannot pay for the call
├── TokenInvalid              not a token of this service for this client and purpose
├── TokenExpired              it was one
├── TokenAlreadyRedeemed      it was accepted before
└── StoreUnavailable          Redis could not do what it was asked
"""

from enum import StrEnum


class VerificationError(Exception):
    """Base of every error that a caller of the service can act on."""


class PhoneReason(StrEnum):
    """Why a phone number is not called."""

    INVALID = "invalid"
    COUNTRY = "country"
    TYPE = "type"
    DENIED = "denied"


class PhoneNotCallable(VerificationError):
    """The number is not a Russian mobile number that the settings allow to be called."""

    def __init__(self, reason: PhoneReason) -> None:
        super().__init__(reason)
        self.reason = reason


class NotAllowed(VerificationError):
    """The request field ``field`` names something that the settings do not allow."""

    def __init__(self, field: str, allowed: frozenset[str]) -> None:
        super().__init__(field)
        self.field = field
        self.allowed = allowed


class CallCooldown(VerificationError):
    """The phone was called less than a cooldown ago; ``retry_after`` is in seconds.

    ``verification_id`` is the one that the start named, if it did.
    """

    limit = "call_cooldown"

    def __init__(self, *, retry_after: int, verification_id: str | None) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after
        self.verification_id = verification_id


class RateLimited(VerificationError):
    """The limit named ``limit`` is used up; ``retry_after`` is in seconds."""

    def __init__(self, *, limit: str, retry_after: int) -> None:
        super().__init__(limit)
        self.limit = limit
        self.retry_after = retry_after


class CallBudgetExhausted(VerificationError):
    """The calls of a day, everybody's together, are used up; ``retry_after`` is in seconds."""

    limit = "calls_per_day"

    def __init__(self, *, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class VerificationNotFound(VerificationError):
    """No such verification for this client: never was, expired, or belongs to another client."""


class VerificationAlreadyUsed(VerificationError):
    """The verification succeeded before; its code is spent."""


class VerificationCanceled(VerificationError):
    """The verification was canceled; no code of it verifies any more."""


class CodeRequired(VerificationError):
    """A check came without a code, and there is no call that the person was to make."""


class CodeNotExpected(VerificationError):
    """A check came with a code, and there is none: the person is to call."""


class CodeTooShortOrLong(VerificationError):
    """No code that could be checked is as long; ``lengths`` are theirs."""

    def __init__(self, lengths: frozenset[int]) -> None:
        super().__init__(sorted(lengths))
        self.lengths = lengths


class VerificationLocked(VerificationError):
    """The budget of checks is used up; ``retry_after`` seconds until a new verification can be started."""

    def __init__(self, *, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class ProviderError(VerificationError):
    """The provider could not do what it was asked."""


class ProviderRejected(ProviderError):
    """The provider understood the request and refused it; ``message`` is its own word, without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ProviderUnavailable(ProviderError):
    """The provider was not reached or did not answer sensibly; worth another try in ``retry_after`` seconds."""

    def __init__(self, *, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class BalanceTooLow(ProviderError):
    """The provider's account cannot pay for the call."""


class TokenInvalid(VerificationError):
    """Not a token of this service for this client and purpose: forged, foreign and garbage are one error."""


class TokenExpired(VerificationError):
    """The token was good once; its time is over."""


class TokenAlreadyRedeemed(VerificationError):
    """The token was redeemed before; it proves nothing a second time."""


class StoreFailure(StrEnum):
    """Why Redis could not do what it was asked."""

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
    """Redis could not do what it was asked; after a time-out or a lost connection it may have done it."""

    def __init__(self, reason: StoreFailure = StoreFailure.OTHER) -> None:
        super().__init__(reason)
        self.reason = reason
