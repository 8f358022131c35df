"""Every error that a caller can meet: one table from what went wrong to its RFC 9457 problem."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.api.auth import Unauthorized
from app.api.idempotency import InvalidIdempotencyKey
from app.api.limits import used_up_header
from app.verification import errors, event_stream, idempotency
from app.verification.code import MIN_LENGTH

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
Members = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A kind of problem: its slug, status, title and meaning, and an example of the members it carries.

    ``also`` are further statuses that it comes with, and ``example_of_also`` the members it then carries.
    """

    slug: str
    status: HTTPStatus
    title: str
    meaning: str
    example: Members = field(default_factory=dict)
    also: tuple[HTTPStatus, ...] = ()
    example_of_also: Members = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """The problem's ``type``: a relative reference, which this service itself describes."""
        return f"/problems/{self.slug}"


_AFTER: Members = {"retry_after": 42}

PROBLEM_TYPES: Mapping[str, ProblemType] = {
    kind.slug: kind
    for kind in (
        ProblemType(
            "validation-failed",
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "The request is not valid",
            "A field is missing, unknown or wrong; `errors` names each. Malformed JSON is a 400, a body over 16 KiB"
            " a 413.",
            {"errors": [{"pointer": "#/code", "detail": "a code is 4 to 6 digits"}]},
            also=(HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
            example_of_also={"errors": [{"pointer": "#", "detail": "The body is not JSON, or larger than 16 KiB."}]},
        ),
        ProblemType(
            "unauthorized",
            HTTPStatus.UNAUTHORIZED,
            "A known API key is needed",
            "Send `Authorization: Bearer <key>`: a client's, or for `/admin` and `/metrics` a key of their own.",
        ),
        ProblemType(
            "phone-not-callable",
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "This phone number is not called",
            "Only Russian mobile numbers are called. `reason`: `invalid` (no such number), `country`, `type` (fixed"
            " line, toll-free, premium), `denied` (by the settings).",
            {"reason": "type"},
        ),
        ProblemType(
            "call-cooldown",
            HTTPStatus.TOO_MANY_REQUESTS,
            "This phone was called a moment ago",
            "Wait `retry_after` seconds before the next call. `verification_id` is the one that the start named, or"
            " null. Of a `reverse_call` a phone has one at a time: cancel it, or wait until it has expired.",
            {"retry_after": 42, "verification_id": "vrf_0a11b22c33d44e55f667788"},
        ),
        ProblemType(
            "rate-limited",
            HTTPStatus.TOO_MANY_REQUESTS,
            "A limit is used up",
            "`limit` names it; it frees up in `retry_after` seconds.",
            {"limit": "calls_per_verification", "retry_after": 42},
        ),
        ProblemType(
            "call-budget-exhausted",
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The calls of a day are used up",
            "All calls that this service may place in a day, for everybody together, were placed.",
            _AFTER,
        ),
        ProblemType(
            "balance-too-low",
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The provider's account cannot pay for a call",
            "The operator has to top the account up. No call was placed.",
        ),
        ProblemType(
            "provider-rejected",
            HTTPStatus.BAD_GATEWAY,
            "The provider refused",
            "`detail` has the provider's own words. A start has placed no call and used nothing up.",
        ),
        ProblemType(
            "provider-unavailable",
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The provider is not available",
            "A start has placed no call and used nothing up. Try again in `retry_after` seconds.",
            _AFTER,
        ),
        ProblemType(
            "store-unavailable",
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The store is not available",
            "`detail` says what is wrong with Redis. A start has placed no call; whether anything else was done is not"
            " known. Try again soon.",
        ),
        ProblemType(
            "verification-not-found",
            HTTPStatus.NOT_FOUND,
            "There is no such verification",
            "Unknown, expired and somebody else's look the same; so does, to a start that names it, one that is not"
            " pending or is of another phone or purpose. Start a new verification.",
        ),
        ProblemType(
            "verification-already-used",
            HTTPStatus.CONFLICT,
            "The code was used already",
            "A code verifies once. Start a new verification.",
        ),
        ProblemType(
            "verification-canceled",
            HTTPStatus.CONFLICT,
            "The verification was canceled",
            "No code of it verifies any more. Start a new verification.",
        ),
        ProblemType(
            "verification-locked",
            HTTPStatus.TOO_MANY_REQUESTS,
            "Too many wrong codes",
            "No code is checked any more; a new verification can be started in `retry_after` seconds.",
            _AFTER,
        ),
        ProblemType(
            "too-many-listeners",
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Too many listen already",
            "To this verification, for this client, or in all. Try again in `retry_after` seconds, or read the"
            " verification now and then.",
            _AFTER,
        ),
        ProblemType(
            "idempotency-key-reused",
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "The Idempotency-Key came before, with another body",
            "A key names one request and its repetitions, whose bodies are the same byte for byte. Make a new key for a"
            " new request.",
        ),
        ProblemType(
            "idempotency-in-progress",
            HTTPStatus.CONFLICT,
            "The first request with this Idempotency-Key is still under way",
            "Repeat the request in `retry_after` seconds to get its answer.",
            {"retry_after": 1},
        ),
        ProblemType(
            "token-invalid",
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "The token proves nothing here",
            "Forged, another client's, and meant for another purpose look the same. It was not used up.",
        ),
        ProblemType(
            "token-expired",
            HTTPStatus.GONE,
            "The token has expired",
            "Whether or not it was redeemed before. Start a new verification.",
        ),
        ProblemType(
            "token-already-redeemed",
            HTTPStatus.CONFLICT,
            "The token was redeemed already",
            "A token is accepted once. Start a new verification.",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One occurrence of a problem, ready to be told."""

    slug: str
    detail: str
    members: Members = field(default_factory=dict)
    status: HTTPStatus | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self, instance: str) -> JSONResponse:
        """Write the problem down; ``instance`` is the id of the request."""
        kind = PROBLEM_TYPES[self.slug]
        headers = dict(self.headers)
        if (retry_after := self.members.get("retry_after")) is not None:
            headers["Retry-After"] = str(retry_after)
        return _response(
            headers,
            type=kind.uri,
            title=kind.title,
            status=self.status or kind.status,
            detail=self.detail,
            instance=instance,
            **self.members,
        )


def plain_problem(
    status: HTTPStatus, instance: str, headers: Mapping[str, str] | None = None, *, detail: str = ""
) -> JSONResponse:
    """Build a problem that its HTTP status explains (RFC 9457, section 4.2.1)."""
    return _response(
        headers or {},
        type="about:blank",
        title=status.phrase,
        status=status,
        detail=detail or status.description,
        instance=instance,
    )


def _response(headers: Mapping[str, str], **body: Any) -> JSONResponse:  # noqa: ANN401 - any JSON
    return JSONResponse(body, body["status"], dict(headers), MEDIA_TYPE)


_PHONE_DETAILS = {
    errors.PhoneReason.INVALID: "This is not a phone number that exists in Russia.",
    errors.PhoneReason.COUNTRY: "This number belongs to another country; only Russian numbers are called.",
    errors.PhoneReason.TYPE: "This is not a mobile number.",
    errors.PhoneReason.DENIED: "Numbers of this range are not called.",
}

_OF_STORE_FAILURE: Mapping[errors.StoreFailure, str] = {
    errors.StoreFailure.TIMEOUT: "Redis did not answer in time.",
    errors.StoreFailure.UNREACHABLE: "Redis could not be reached.",
    errors.StoreFailure.CONNECTION_LOST: "The connection to Redis was lost before the answer came.",
    errors.StoreFailure.REPLICA: "Redis is a read-only replica.",
    errors.StoreFailure.LOADING: "Redis is still loading its data.",
    errors.StoreFailure.OUT_OF_MEMORY: "Redis is out of memory.",
    errors.StoreFailure.CANNOT_SAVE: "Redis cannot save its data, so it takes no writes.",
    errors.StoreFailure.TOO_FEW_REPLICAS: "Redis has too few replicas to take writes.",
    errors.StoreFailure.CLUSTER: "This node of the Redis cluster cannot serve the request.",
    errors.StoreFailure.BUSY: "Redis is busy with a long script.",
    errors.StoreFailure.ACCESS_DENIED: "Redis refuses the service's user: its password is wrong, or it lacks a right.",
    errors.StoreFailure.OTHER: "Redis refused a command.",
}
_OF_ERROR: Mapping[type[Exception], Callable[[Any], Problem]] = {
    errors.PhoneNotCallable: lambda e: Problem(
        "phone-not-callable", _PHONE_DETAILS[e.reason], {"reason": e.reason.value}
    ),
    errors.NotAllowed: lambda e: _invalid([(f"#/{e.field}", f"must be one of: {', '.join(sorted(e.allowed))}")]),
    errors.CallCooldown: lambda e: Problem(
        "call-cooldown",
        f"The phone can be called again in {e.retry_after} s.",
        {"retry_after": e.retry_after, "verification_id": e.verification_id},
    ),
    errors.RateLimited: lambda e: Problem(
        "rate-limited",
        f"The limit {e.limit} is used up for another {e.retry_after} s.",
        {"limit": e.limit, "retry_after": e.retry_after},
        headers=used_up_header(e.limit, e.retry_after),
    ),
    errors.CallBudgetExhausted: lambda e: Problem(
        "call-budget-exhausted",
        f"No call is placed for another {e.retry_after} s.",
        {"retry_after": e.retry_after},
        headers=used_up_header(e.limit, e.retry_after),
    ),
    errors.VerificationNotFound: lambda _: Problem(
        "verification-not-found",
        "It never was, it expired, or it is not yours; or it cannot be called again. Start a new one.",
    ),
    errors.VerificationAlreadyUsed: lambda _: Problem(
        "verification-already-used", "This verification succeeded before. Start a new one."
    ),
    errors.VerificationAlreadyCanceled: lambda _: Problem("verification-canceled", "It was canceled. Start a new one."),
    errors.CodeRequired: lambda _: _invalid([("#/code", "is required, but for a reverse_call by its id")]),
    errors.CodeNotExpected: lambda _: _invalid([("#/code", "leave it out: of a reverse_call the person calls `dial`")]),
    errors.CodeTooShortOrLong: lambda e: _invalid([("#/code", f"must have {_one_of(e.lengths)} digits")]),
    errors.VerificationLocked: lambda e: Problem(
        "verification-locked",
        f"Start a new verification in {e.retry_after} s.",
        {"retry_after": e.retry_after},
    ),
    errors.TokenInvalid: lambda _: Problem("token-invalid", "It is no token of this service for you and this purpose."),
    errors.TokenExpired: lambda _: Problem("token-expired", "Its time is over. Start a new verification."),
    errors.TokenAlreadyRedeemed: lambda _: Problem(
        "token-already-redeemed", "It was accepted before. Start a new one."
    ),
    errors.ProviderRejected: lambda e: Problem("provider-rejected", f"The provider said: {e.message}"),
    errors.ProviderUnavailable: lambda e: Problem(
        "provider-unavailable", "The provider could not be reached.", {"retry_after": e.retry_after}
    ),
    errors.BalanceTooLow: lambda _: Problem("balance-too-low", "The provider's account has to be topped up."),
    event_stream.TooManyListeners: lambda e: Problem(
        "too-many-listeners", f"Try again in {e.retry_after} s.", {"retry_after": e.retry_after}
    ),
    idempotency.IdempotencyKeyReused: lambda _: Problem(
        "idempotency-key-reused", "Make a new Idempotency-Key for a new request."
    ),
    idempotency.IdempotencyInProgress: lambda e: Problem(
        "idempotency-in-progress",
        f"Repeat the request in {e.retry_after} s to get its answer.",
        {"retry_after": e.retry_after},
    ),
    InvalidIdempotencyKey: lambda _: _invalid(
        [("Idempotency-Key", "this header must be one key of 1 to 128 visible ASCII characters")]
    ),
    errors.StoreUnavailable: lambda e: Problem("store-unavailable", _OF_STORE_FAILURE[e.reason]),
    Unauthorized: lambda e: Problem(
        "unauthorized",
        f"Send a known {e.wanted} as Authorization: Bearer <key>.",
        headers={"WWW-Authenticate": 'Bearer realm="plusofon-verify"'},
    ),
}


def _one_of(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))


def detail_of(error: Exception) -> str:
    """Say what an error of the service means in a sentence, where there is no HTTP."""
    return _OF_ERROR[type(error)](error).detail


def install_problems(app: FastAPI) -> None:
    """Have every error of the table, of validation and of HTTP itself told as a problem."""
    for kind in _OF_ERROR:
        app.add_exception_handler(kind, _tell)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(HTTPException, _tell_http)


async def _tell(request: Request, error: Exception) -> JSONResponse:
    return _answer(request, _OF_ERROR[type(error)](error))


async def _tell_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - it is registered for this class alone
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        return _answer(request, _malformed(HTTPStatus.BAD_REQUEST, "The body is not JSON."))
    return _answer(request, _invalid([(_pointer(item["loc"]), _say(item)) for item in found]))


async def _tell_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for this class alone
    status = HTTPStatus(error.status_code)
    if status is HTTPStatus.BAD_REQUEST:
        return _answer(request, _malformed(status, "The body is not JSON."))
    if status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return _answer(request, _malformed(status, "The body is larger than 16 KiB."))
    return plain_problem(status, request.state.request_id, error.headers)


def _answer(request: Request, problem: Problem) -> JSONResponse:
    """Answer with a problem, and note its name for the log and the metrics."""
    request.state.outcome = problem.slug
    return problem.response(request.state.request_id)


def _malformed(status: HTTPStatus, detail: str) -> Problem:
    return Problem("validation-failed", detail, {"errors": [{"pointer": "#", "detail": detail}]}, status)


def _invalid(found: Sequence[tuple[str, str]]) -> Problem:
    return Problem(
        "validation-failed",
        "; ".join(f"{pointer.lstrip('#/')}: {detail}".lstrip(": ") for pointer, detail in found),
        {"errors": [{"pointer": pointer, "detail": detail} for pointer, detail in found]},
    )


def _pointer(location: Sequence[str | int]) -> str:
    """Point into the body as a URI fragment (RFC 6901, section 6)."""
    return "/".join(["#", *map(_pointer_step, location[1:])])


def _pointer_step(step: str | int) -> str:
    """Escape the name of a field; one with as many digits as a code may be a code or a phone, and is not repeated."""
    if isinstance(step, str) and sum(map(str.isnumeric, step)) >= MIN_LENGTH:
        return "•••"
    return str(step).replace("~", "~0").replace("/", "~1")


_NO_OBJECT = "must be a JSON object, sent with Content-Type: application/json"
_WORDS = {
    "model_attributes_type": _NO_OBJECT,
    "model_type": _NO_OBJECT,
    "missing": "is required",
    "extra_forbidden": "is not known here",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "has the wrong form",
}
_SHOULD = ("Input should be", "must be")  # pydantic's words, and ours


def _say(item: Members) -> str:
    """Say what is wrong without repeating what was sent: it may be a code or a phone number."""
    return _WORDS.get(item["type"]) or str(item["msg"]).removeprefix("Value error, ").replace(*_SHOULD)
