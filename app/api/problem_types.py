"""Every error that a caller is told of: one table from the error to its RFC 9457 problem, and its words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.api_keys import Unauthorized
from app.verification import errors
from app.verification.errors import PhoneReason, StoreFailure, TooManyListeners
from app.verification.idempotency import IdempotencyInProgress, IdempotencyKeyReused, InvalidIdempotencyKey
from app.verification.stats import InvalidPeriod

MAX_BODY_KIB = 16  # of a request


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A type of problem, and the error that it reports; None for wrong fields of a request, which have many.

    ``detail`` is a format string over the error, or one for each ``reason`` of it; so is each of the ``headers``.
    ``members`` are the attributes of the error that the problem carries, each with an example. ``also`` are further
    statuses of the problem, each with its detail.
    """

    slug: str
    status: int
    title: str
    error: type[Exception] | None
    meaning: str
    detail: str | Mapping[Any, str]
    members: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[int, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """The problem's ``type``: a relative reference, which this service itself describes."""
        return f"/problems/{self.slug}"

    def example(self, status: int) -> dict[str, Any]:
        """Return an example of the problem, with one of its statuses."""
        members = {"errors": [{"pointer": "#", "detail": self.also[status]}]} if status in self.also else self.members
        return self.body(self.meaning, "5f0c7a1e9b2d4c68", members, status)

    def body(self, detail: str, instance: str, members: Mapping[str, Any], status: int = 0) -> dict[str, Any]:
        """Return the JSON of an occurrence; ``instance`` is the id of the request."""
        head = {"type": self.uri, "title": self.title, "status": status or self.status}
        return {**head, "detail": detail, "instance": instance, **members}


# A table: slug, status, title and error stand in one line, then the meaning, then the detail.
# fmt: off
VALIDATION_FAILED = ProblemType(
    "validation-failed", 422, "The request is not valid", None,  # FIELD_ERRORS, below, and FastAPI's own
    "A field is missing, unknown or wrong; `errors` names each. Malformed JSON is a 400,"
    f" a body over {MAX_BODY_KIB} KiB a 413.",
    "",  # the `errors`, joined
    members={"errors": [{"pointer": "#/code", "detail": "a code is 4 to 6 digits"}]},
    also={400: "The body is not JSON.", 413: f"The body is larger than {MAX_BODY_KIB} KiB."},
)
_LIMIT_HEADER = {"RateLimit": '"{0.limit}";r=0;t={0.retry_after}'}
_PROBLEMS = (
    VALIDATION_FAILED,
    ProblemType(
        "unauthorized", 401, "A known API key is needed", Unauthorized,
        "Send `Authorization: Bearer <key>`: a client's, or for `/admin` and `/metrics` a key of their own.",
        "Send a known {0.wanted} as Authorization: Bearer <key>.",
        headers={"WWW-Authenticate": 'Bearer realm="plusofon-verify"'},
    ),
    ProblemType(
        "phone-not-callable", 422, "This phone number is not called", errors.PhoneNotCallable,
        "Only Russian mobile numbers are called. `reason`: `invalid` (no such number), `country`, `type` (fixed line,"
        " toll-free, premium), `denied` (by the settings).",
        {
            PhoneReason.INVALID: "This is not a phone number that exists in Russia.",
            PhoneReason.COUNTRY: "This number belongs to another country; only Russian numbers are called.",
            PhoneReason.TYPE: "This is not a mobile number.",
            PhoneReason.DENIED: "Numbers of this range are not called.",
        },
        members={"reason": "type"},
    ),
    ProblemType(
        "call-cooldown", 429, "This phone was called a moment ago", errors.CallCooldown,
        "Wait `retry_after` seconds before the next call. `verification_id` is the one that the start named, or null."
        " Of a `reverse_call` a phone has one at a time: cancel it, or wait until it has expired.",
        "The phone can be called again in {0.retry_after} s.",
        members={"retry_after": 42, "verification_id": "vrf_0a11b22c33d44e55f667788"},
    ),
    ProblemType(
        "rate-limited", 429, "A limit is used up", errors.RateLimited,
        "`limit` names it; it frees up in `retry_after` seconds.",
        "The limit {0.limit} is used up for another {0.retry_after} s.",
        members={"limit": "calls_per_verification", "retry_after": 42},
        headers=_LIMIT_HEADER,
    ),
    ProblemType(
        "call-budget-exhausted", 503, "The calls of a day are used up", errors.CallBudgetExhausted,
        "All calls that this service may place in a day, for everybody together, were placed.",
        "No call is placed for another {0.retry_after} s.",
        members={"retry_after": 42},
        headers=_LIMIT_HEADER,
    ),
    ProblemType(
        "balance-too-low", 503, "The provider's account cannot pay for a call", errors.BalanceTooLow,
        "The operator has to top the account up. No call was placed.",
        "The provider's account has to be topped up.",
    ),
    ProblemType(
        "provider-rejected", 502, "The provider refused", errors.ProviderRejected,
        "`detail` has the provider's own words. A start has placed no call and used nothing up.",
        "The provider said: {0.message}",
    ),
    ProblemType(
        "provider-unavailable", 503, "The provider is not available", errors.ProviderUnavailable,
        "A start has placed no call and used nothing up. Try again in `retry_after` seconds.",
        "The provider could not be reached.",
        members={"retry_after": 42},
    ),
    ProblemType(
        "store-unavailable", 503, "The store is not available", errors.StoreUnavailable,
        "`detail` says what is wrong with Redis. A start has placed no call; whether anything else was done is not"
        " known. Try again soon.",
        {
            StoreFailure.TIMEOUT: "Redis did not answer in time.",
            StoreFailure.UNREACHABLE: "Redis could not be reached.",
            StoreFailure.CONNECTION_LOST: "The connection to Redis was lost before the answer came.",
            StoreFailure.REPLICA: "Redis is a read-only replica.",
            StoreFailure.LOADING: "Redis is still loading its data.",
            StoreFailure.OUT_OF_MEMORY: "Redis is out of memory.",
            StoreFailure.CANNOT_SAVE: "Redis cannot save its data, so it takes no writes.",
            StoreFailure.TOO_FEW_REPLICAS: "Redis has too few replicas to take writes.",
            StoreFailure.CLUSTER: "This node of the Redis cluster cannot serve the request.",
            StoreFailure.BUSY: "Redis is busy with a long script.",
            StoreFailure.ACCESS_DENIED: "Redis refuses the service's user: its password is wrong, or it lacks a right.",
            StoreFailure.OTHER: "Redis refused a command.",
        },
    ),
    ProblemType(
        "verification-not-found", 404, "There is no such verification", errors.VerificationNotFound,
        "Unknown, expired and somebody else's look the same; so does, to a start that names it, one that is not pending"
        " or is of another phone, purpose or reference. Start a new verification.",
        "It never was, it expired, or it is not yours; or it cannot be called again. Start a new one.",
    ),
    ProblemType(
        "verification-already-used", 409, "The code was used already", errors.VerificationAlreadyUsed,
        "A code verifies once. Start a new verification.",
        "This verification succeeded before. Start a new one.",
    ),
    ProblemType(
        "verification-canceled", 409, "The verification was canceled", errors.VerificationAlreadyCanceled,
        "No code of it verifies any more. Start a new verification.",
        "It was canceled. Start a new one.",
    ),
    ProblemType(
        "verification-locked", 429, "Too many wrong codes", errors.VerificationLocked,
        "No code is checked any more; a new verification can be started in `retry_after` seconds.",
        "Start a new verification in {0.retry_after} s.",
        members={"retry_after": 42},
    ),
    ProblemType(
        "too-many-listeners", 503, "Too many listen already", TooManyListeners,
        "To this verification, for this client, or in all. Try again in `retry_after` seconds, or read the verification"
        " now and then.",
        "Try again in {0.retry_after} s.",
        members={"retry_after": 42},
    ),
    ProblemType(
        "idempotency-key-reused", 422, "The Idempotency-Key came before, with another body", IdempotencyKeyReused,
        "A key names one request and its repetitions, whose bodies are the same byte for byte. Make a new key for a new"
        " request.",
        "Make a new Idempotency-Key for a new request.",
    ),
    ProblemType(
        "idempotency-in-progress", 409, "The first request with this Idempotency-Key is still under way",
        IdempotencyInProgress,
        "Repeat the request in `retry_after` seconds to get its answer.",
        "Repeat the request in {0.retry_after} s to get its answer.",
        members={"retry_after": 1},
    ),
    ProblemType(
        "token-invalid", 422, "The token proves nothing here", errors.TokenInvalid,
        "Forged, another client's, and meant for another purpose look the same. It was not used up.",
        "It is no token of this service for you and this purpose.",
    ),
    ProblemType(
        "token-expired", 410, "The token has expired", errors.TokenExpired,
        "Whether or not it was redeemed before. Start a new verification.",
        "Its time is over. Start a new verification.",
    ),
    ProblemType(
        "token-already-redeemed", 409, "The token was redeemed already", errors.TokenAlreadyRedeemed,
        "A token is accepted once. Start a new verification.",
        "It was accepted before. Start a new one.",
    ),
)
# fmt: on
PROBLEM_TYPES: Mapping[str, ProblemType] = {kind.slug: kind for kind in _PROBLEMS}
PROBLEM_OF = {kind.error: kind for kind in _PROBLEMS if kind.error}

# Errors that are one wrong field of the request: its pointer, and what is wrong with it.
FIELD_ERRORS: Mapping[type[Exception], Callable[[Any], tuple[str, str]]] = {
    errors.NotAllowed: lambda e: (f"#/{e.field}", f"must be one of: {', '.join(sorted(e.allowed))}"),
    errors.CodeRequired: lambda _: ("#/code", "is required, but for a reverse_call by its id"),
    errors.CodeNotExpected: lambda _: ("#/code", "leave it out: of a reverse_call the person calls `dial`"),
    errors.CodeTooShortOrLong: lambda e: ("#/code", f"must have {' or '.join(map(str, sorted(e.lengths)))} digits"),
    InvalidPeriod: lambda e: (f"#/{e.parameter}", e.reason),
    InvalidIdempotencyKey: lambda _: (
        "Idempotency-Key",
        "this header must be one key of 1 to 128 visible ASCII characters",
    ),
}


def detail_of(error: Exception) -> str:
    """Return the sentence that explains an error of the service, without HTTP."""
    if type(error) in FIELD_ERRORS:
        return join_fields([FIELD_ERRORS[type(error)](error)])
    detail = PROBLEM_OF[type(error)].detail
    if not isinstance(detail, str):
        detail = detail[error.reason]  # type: ignore[attr-defined] # an error with a detail for each reason has one
    return detail.format(error)


def join_fields(found: Sequence[tuple[str, str]]) -> str:
    """Return the detail of fields that are wrong, each as its pointer and what is wrong with it."""
    return "; ".join(f"{pointer.lstrip('#/')}: {detail}".lstrip(": ") for pointer, detail in found)
