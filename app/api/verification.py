"""The routes of a verification."""

from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Response
from starlette.exceptions import HTTPException

from app.api.client_address import count_address
from app.api.dependencies import Client, ContainerDep, ExchangeDep
from app.api.exchange import Exchange
from app.api.idempotency import IDEMPOTENCY_KEY, KeyedRequest
from app.api.responses import JsonAnswer, answers, quota_headers
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
    view_verification,
)
from app.verification.check import CheckRequest
from app.verification.model import Consent, Started
from app.verification.ports import CallId
from app.verification.start import StartRequest

router = APIRouter(prefix="/verify", tags=["verify"], route_class=JsonRoute)

# How long a response is kept for a repetition of its request: that of a check as long as a code can live.
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
        HTTPStatus.CREATED, Verification,
        problems=(
            "validation-failed", "unauthorized", "phone-not-callable", "call-cooldown", "rate-limited",
            "call-budget-exhausted", "verification-not-found", "balance-too-low", "provider-rejected",
            "provider-unavailable", "store-unavailable", "idempotency-key-reused", "idempotency-in-progress",
        ),
        headers=("Location", "RateLimit", "RateLimit-Policy", "Idempotent-Replayed"),
    ),
    openapi_extra=IDEMPOTENCY_KEY,
)  # fmt: skip
async def start(
    body: Annotated[StartVerificationRequest, Body(openapi_examples=START_EXAMPLES)],
    exchange: ExchangeDep,
    client: Client,
    container: ContainerDep,
) -> Response:
    """Place a call that gives a code to a Russian mobile number.

    The answer has the channel used: `voice` says the code; for a `flash_call` the code is the last four digits of the
    number that calls; for a `reverse_call` there is no code, and the person calls the number `dial`.

    Every start is a new verification, with its own id, code and checks. To call again for a pending one (a **resend**)
    send its `verification_id`: another call with another code, after a cooldown that grows. Each code stays valid for
    five minutes; all share one budget of checks. A `reverse_call` is always a new verification, so take the id from
    each answer.
    """
    wanted = StartRequest(
        client=client,
        phone=body.phone,
        purpose=body.purpose,
        verification_id=body.verification_id,
        channels=body.wanted_channels,
        lang=body.lang,
        address=count_address(body.client_ip),
        reference=body.reference,
        consent=Consent(body.consent.version, body.consent.at) if body.consent else None,
    )
    journal = _Journal.of(exchange)
    started = await container.service.start(wanted, journal=journal)
    return (journal.response if journal else None) or _started(exchange, started)


def _started(exchange: Exchange, started: Started) -> Response:
    location = f"{exchange.path_prefix}/verify/{started.verification.id}".encode()
    headers = [(b"location", location), *quota_headers(started.quotas)]
    return JsonAnswer(view_verification(started.verification), HTTPStatus.CREATED, headers)


@dataclass(slots=True)
class _Journal(KeyedRequest):
    """The StartJournal of a start with an ``Idempotency-Key``. ``response`` is set once it is being kept."""

    response: Response | None = field(default=None, init=False)

    async def claim(self) -> CallId | None:
        begun = (await self.claim_request()).begun
        return CallId.parse(begun) if begun else None

    async def keep(self, started: Started) -> None:
        self.response = _started(self.exchange, started)
        # A test number may be started very often, so its responses are not kept for a day.
        await self.keep_response(self.response, _KEEP_CHECK if started.verification.test else _KEEP_START)


@router.post(
    "/check",
    response_model=CheckView,
    operation_id="checkVerification",
    summary="Check what the person typed",
    response_description="The code was checked; `verified` is the result.",
    responses=answers(
        HTTPStatus.OK, Verified, NotVerified, Locked,
        problems=(
            "validation-failed", "unauthorized", "phone-not-callable", "verification-not-found",
            "verification-already-used", "verification-canceled", "verification-locked", "rate-limited",
            "store-unavailable", "idempotency-key-reused", "idempotency-in-progress",
        ),
        headers=("RateLimit", "RateLimit-Policy", "Idempotent-Replayed"),
    ),
    openapi_extra=IDEMPOTENCY_KEY,
)  # fmt: skip
async def check(
    body: Annotated[CheckVerificationRequest, Body(openapi_examples=CHECK_EXAMPLES)],
    exchange: ExchangeDep,
    client: Client,
    container: ContainerDep,
) -> Response:
    """Check a code, by `verification_id` or by `phone` and `purpose`.

    By `phone` the code is compared with those of all your pending verifications of that phone and purpose; a wrong one
    counts against the latest.

    A correct code verifies exactly once. The answer then has a `token`, which proves to your backend that the phone was
    verified, without another request to this service. Repeated with its `Idempotency-Key`, a check that verified gives
    a token again, even if its answer was lost.

    For a `reverse_call` leave the code out: the answer is `pending`, and no check is used, until the person has called.
    """

    async def answer(retry_digest: str | None = None) -> Response:
        address = count_address(body.client_ip)
        request = CheckRequest(client=client, code=body.code, address=address, retry_digest=retry_digest)
        if body.verification_id is not None:
            result = await container.service.check.by_id(request, body.verification_id)
        else:
            purpose = body.purpose or "phone_verification"
            result = await container.service.check.by_phone(request, body.phone or "", purpose)
        return JsonAnswer(view_check(result), headers=quota_headers(result.quotas))

    keyed = KeyedRequest.of(exchange)
    return await (keyed.answer(answer, keep_for=_KEEP_CHECK) if keyed else answer())


@router.get("/start", include_in_schema=False)
@router.get("/check", include_in_schema=False)
async def only_post() -> Response:
    """Answer a likely mistake with 405: ``start`` and ``check`` are not ids."""
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
async def read(verification_id: str, client: Client, container: ContainerDep) -> Response:
    """Return the present state. No check is used, and the provider is not asked: calls are followed in the background.

    `verified` says that a correct code was checked, not for whom: the proof is the answer to that check, or its token.
    """
    return JsonAnswer(view_verification(await container.service.read(client=client, verification_id=verification_id)))


@router.post(
    "/{verification_id}/cancel",
    response_model=Verification,
    operation_id="cancelVerification",
    summary="Cancel a verification",
    responses=answers(
        HTTPStatus.OK, Verification,
        problems=(
            "unauthorized", "verification-not-found", "verification-already-used", "verification-locked",
            "store-unavailable",
        ),
    ),
)  # fmt: skip
async def cancel(verification_id: str, client: Client, container: ContainerDep) -> Response:
    """Cancel a pending verification: no code of it verifies any more. Canceling again changes nothing."""
    return JsonAnswer(view_verification(await container.service.cancel(client=client, verification_id=verification_id)))
