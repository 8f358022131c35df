"""Every error of the service is answered with the problem of its row in the table."""

import json
from collections.abc import Iterator
from inspect import isawaitable

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from app.api.exchange import Exchange
from app.api.problem_types import PROBLEM_TYPES, detail_of
from app.api.problems import MEDIA_TYPE
from app.main import create_api
from app.verification import errors, idempotency

HANDLERS = create_api().exception_handlers
EXAMPLES: list[tuple[errors.VerificationError, int, str]] = [
    *((errors.PhoneNotCallable(reason), 422, "phone-not-callable") for reason in errors.PhoneReason),
    (errors.CallCooldown(retry_after=5, verification_id=None), 429, "call-cooldown"),
    (errors.RateLimited(limit="calls_per_phone_hour", retry_after=7), 429, "rate-limited"),
    (errors.CallBudgetExhausted(retry_after=9), 503, "call-budget-exhausted"),
    (errors.BalanceTooLow(), 503, "balance-too-low"),
    (errors.ProviderRejected("no {money}"), 502, "provider-rejected"),
    (errors.ProviderUnavailable(retry_after=2), 503, "provider-unavailable"),
    *((errors.StoreUnavailable(reason), 503, "store-unavailable") for reason in errors.StoreFailure),
    (errors.VerificationNotFound(), 404, "verification-not-found"),
    (errors.VerificationAlreadyUsed(), 409, "verification-already-used"),
    (errors.VerificationLocked(retry_after=3), 429, "verification-locked"),
    (errors.TooManyListeners(retry_after=4), 503, "too-many-listeners"),
    (idempotency.IdempotencyKeyReused(), 422, "idempotency-key-reused"),
    (idempotency.IdempotencyInProgress(retry_after=1), 409, "idempotency-in-progress"),
    (errors.TokenInvalid(), 422, "token-invalid"),
    (errors.TokenExpired(), 410, "token-expired"),
    (errors.TokenAlreadyRedeemed(), 409, "token-already-redeemed"),
]


def leaves(error: type[Exception]) -> Iterator[type[Exception]]:
    below = error.__subclasses__()
    yield from (leaf for child in below for leaf in leaves(child)) if below else [error]


async def handle(error: Exception) -> tuple[Exchange, Response]:
    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"x-request-id", b"0123")]}
    scope["exchange"] = exchange = Exchange(scope, receive, send)
    response = HANDLERS[type(error)](Request(scope), error)
    assert isawaitable(response)
    return exchange, await response


def test_every_domain_error_has_a_handler() -> None:
    assert {leaf for leaf in leaves(errors.VerificationError) if leaf.__module__.startswith("app.")} <= set(HANDLERS)


@pytest.mark.parametrize(("error", "status", "slug"), EXAMPLES)
async def test_an_error_is_answered_with_its_problem(error: errors.VerificationError, status: int, slug: str) -> None:
    exchange, response = await handle(error)

    problem = json.loads(bytes(response.body))
    kind = PROBLEM_TYPES[slug]
    assert (response.status_code, response.headers["Content-Type"]) == (status, MEDIA_TYPE)
    assert [problem.pop(name) for name in ("type", "title", "status", "instance")] == [
        *(f"/problems/{slug}", kind.title, status, "0123"),
    ]
    assert problem.pop("detail") == detail_of(error)
    assert problem == {name: getattr(error, name) for name in kind.members}
    assert response.headers.get("Retry-After") == (str(problem["retry_after"]) if "retry_after" in problem else None)
    assert exchange.outcome == slug


def test_a_message_of_the_provider_is_not_read_as_a_format() -> None:
    assert detail_of(errors.ProviderRejected("no {money}")) == "The provider said: no {money}"


@pytest.mark.parametrize(
    ("error", "pointer"),
    [
        (errors.NotAllowed("channel", frozenset({"voice"})), "#/channel"),
        (errors.CodeRequired(), "#/code"),
        (errors.CodeNotExpected(), "#/code"),
        (errors.CodeTooShortOrLong(frozenset({4, 6})), "#/code"),
        (idempotency.InvalidIdempotencyKey(), "Idempotency-Key"),
    ],
)
async def test_an_error_of_one_field_is_a_failed_validation_that_points_at_it(error: Exception, pointer: str) -> None:
    _, response = await handle(error)

    problem = json.loads(bytes(response.body))
    assert (response.status_code, problem["type"]) == (422, "/problems/validation-failed")
    assert [item["pointer"] for item in problem["errors"]] == [pointer]
    assert problem["detail"] == detail_of(error)
