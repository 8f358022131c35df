"""The routes of a verification: request → service → response."""

from datetime import timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from starlette.exceptions import HTTPException

from app.api.client_address import count_address
from app.api.dependencies import Client, Service
from app.api.docs import answers, respond
from app.api.idempotency import IDEMPOTENCY_KEY, AnsweredBefore, StartJournal, once, repeatable
from app.api.limits import quota_headers
from app.api.routing import JsonRoute
from app.api.schemas import (
    CHECK_EXAMPLES,
    START_EXAMPLES,
    CheckVerificationRequest,
    CheckView,
    Locked,
    NotVerified,
    StartVerificationRequest,
    Verification,
    Verified,
    view_check,
)
from app.verification.check import CheckRequest
from app.verification.model import Started
from app.verification.start import StartRequest

router = APIRouter(prefix="/verify", tags=["verify"], route_class=JsonRoute)

# How long an answer is kept for a repetition of its request: a check's as long as a code can live.
_KEEP_START = timedelta(days=1)
_KEEP_CHECK = timedelta(minutes=5)


@router.post(
    "/start",
    status_code=HTTPStatus.CREATED,
    response_model=Verification,
    operation_id="startVerification",
    summary="Start a verification: place the call",
    response_description="The call was placed, or may have been (`call.status` is then `unconfirmed`).",
    responses=answers(
        HTTPStatus.CREATED,
        Verification,
        problems=(
            "validation-failed", "unauthorized", "phone-not-callable", "call-cooldown", "rate-limited",
            "call-budget-exhausted",
            "verification-not-found", "balance-too-low", "provider-rejected", "provider-unavailable",
            "store-unavailable", "idempotency-key-reused", "idempotency-in-progress",
        ),
        headers=("Location", "RateLimit", "RateLimit-Policy"),
    ),
    openapi_extra=IDEMPOTENCY_KEY,
)  # fmt: skip
async def start(
    body: Annotated[StartVerificationRequest, Body(openapi_examples=START_EXAMPLES)],
    http: Request,
    client: Client,
    service: Service,
) -> Response:
    """Place a call that gives a code to a Russian mobile number.

    The answer names the channel used: `voice` says the code; of a `flash_call` the code is the last four digits
    of the number that calls; for a `reverse_call` there is none, and the person calls the number `dial`.

    Every start is a verification of its own, with its own id, code and checks. To call again for one that is pending (a
    **resend**) send its `verification_id`: another call with another code, after a cooldown that grows. Every code of
    it stays good for its own five minutes, all on one budget of checks. A `reverse_call` always is a verification of
    its own, so take the id from each answer.
    """
    wanted = StartRequest(
        client=client,
        phone=body.phone,
        purpose=body.purpose,
        verification_id=body.verification_id,
        channels=body.wanted_channels,
        lang=body.lang,
        address=count_address(body.client_ip),
    )
    repeated = repeatable(http, await http.body())
    if repeated is None:
        return _started(await service.start(wanted))
    journal = StartJournal(repeated, answer=_started, keep_for=_keep_start)
    try:
        started = await service.start(wanted, journal=journal)
    except AnsweredBefore as before:
        return before.response
    return journal.response or _started(started)


def _keep_start(started: Started) -> timedelta:
    """Return how long to keep an answer: that of a test number, of which there may be many, not for a day."""
    return _KEEP_CHECK if started.verification.test else _KEEP_START


def _started(started: Started) -> Response:
    verification = started.verification
    headers = {"Location": f"/verify/{verification.id}", **quota_headers(started.quotas)}
    return respond(Verification.of(verification), HTTPStatus.CREATED, headers)


@router.post(
    "/check",
    response_model=CheckView,
    operation_id="checkVerification",
    summary="Check what the person typed",
    response_description="The code was evaluated; `verified` tells how.",
    responses=answers(
        HTTPStatus.OK,
        Verified,
        NotVerified,
        Locked,
        problems=(
            "validation-failed", "unauthorized", "phone-not-callable", "verification-not-found",
            "verification-already-used", "verification-canceled", "verification-locked", "rate-limited",
            "store-unavailable",
            "idempotency-key-reused", "idempotency-in-progress",
        ),
        headers=("RateLimit", "RateLimit-Policy"),
    ),
    openapi_extra=IDEMPOTENCY_KEY,
)  # fmt: skip
async def check(
    body: Annotated[CheckVerificationRequest, Body(openapi_examples=CHECK_EXAMPLES)],
    http: Request,
    client: Client,
    service: Service,
) -> Response:
    """Check a code, by `verification_id` or by `phone` and `purpose`.

    By `phone` the code is compared with those of all your pending verifications of that phone and purpose; a wrong one
    counts against the latest.

    A right code verifies exactly once. The answer then has a `token`: with it a browser or another service can show
    your backend that the phone was verified, without the backend asking again. Repeated with its `Idempotency-Key`, a
    right check gives the proof again, even if its answer was lost.

    Of a `reverse_call` there is no code: leave it out, and the answer is `pending`, at no cost, until the person has
    called.
    """

    async def evaluate(retry_digest: str | None) -> Response:
        request = CheckRequest(
            client=client, code=body.code, address=count_address(body.client_ip), retry_digest=retry_digest
        )
        if body.verification_id is not None:
            result = await service.check.by_id(request, body.verification_id)
        else:
            result = await service.check.by_phone(request, body.phone or "", body.purpose or "phone_verification")
        return respond(view_check(result), headers=quota_headers(result.quotas))

    return await once(http, evaluate, keep_for=_KEEP_CHECK)


@router.get("/start", include_in_schema=False)
@router.get("/check", include_in_schema=False)
async def only_post() -> Response:
    """Refuse the likeliest mistake for what it is: these are no ids."""
    raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "POST"})


@router.get(
    "/{verification_id}",
    response_model=Verification,
    operation_id="getVerification",
    summary="Read a verification and the state of its latest call",
    responses=answers(
        HTTPStatus.OK, Verification, problems=("unauthorized", "verification-not-found", "store-unavailable")
    ),
)
async def read(verification_id: str, client: Client, service: Service) -> Response:
    """Return the present state. Costs no check, and asks nobody: calls are followed in the background.

    `verified` here says that somebody has typed the code, not who: the proof is the answer to a check, or its token.
    """
    return respond(Verification.of(await service.read(client=client, verification_id=verification_id)))


@router.post(
    "/{verification_id}/cancel",
    response_model=Verification,
    operation_id="cancelVerification",
    summary="Call a verification off",
    responses=answers(
        HTTPStatus.OK,
        Verification,
        problems=(
            "unauthorized", "verification-not-found", "verification-already-used", "verification-locked",
            "store-unavailable",
        ),
    ),
)  # fmt: skip
async def cancel(verification_id: str, client: Client, service: Service) -> Response:
    """Make a pending verification `canceled`: no code of it verifies any more. Canceling again changes nothing."""
    return respond(Verification.of(await service.cancel(client=client, verification_id=verification_id)))
