"""The routes for whoever runs the service: is it alive, can it work, how is it doing, what does a problem mean."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Protocol

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from app.api.auth import authenticate
from app.api.dependencies import Service
from app.api.problems import PROBLEM_TYPES, detail_of
from app.api.responses import answers, plain_answer, respond
from app.api.schemas import Liveness, ProblemType, Readiness
from app.verification.errors import StoreUnavailable

router = APIRouter(tags=["operations"])


class Exposition(Protocol):
    """Writes the metrics down, in the format that ``content_type`` names."""

    content_type: str

    async def render(self) -> bytes:
        """Write them."""
        ...


class Circuit(Protocol):
    """What passes on requests to a provider, or for a while does not."""

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half_open``."""
        ...


@router.get(
    "/livez",
    response_model=Liveness,
    operation_id="getLiveness",
    summary="The process is up",
    responses=answers(HTTPStatus.OK, Liveness),
)
async def livez() -> Response:
    """Answer. Asks nobody else: a restart would not mend them."""
    return respond(Liveness())


@router.get(
    "/readyz",
    response_model=Readiness,
    operation_id="getReadiness",
    summary="Verifications can be started and checked",
    responses={
        **answers(HTTPStatus.OK, Readiness),
        HTTPStatus.SERVICE_UNAVAILABLE: {"model": Readiness, "description": "Not now; `reasons` say why."},
    },
)
async def readyz(http: Request, service: Service) -> Response:
    """Return whether requests should be sent here: not while Redis does not take and return what is written.

    That is tried at most once a second, whoever asks.

    While a provider is (its circuit is `open`) or the balance is too low, no call is placed, but codes that were given
    can still be checked. So that is `degraded` and no 503: else every server would be taken out of service at once.
    """
    known: Mapping[str, Circuit] = http.state.circuits
    circuits = {name: str(circuit.state) for name, circuit in known.items()}
    balance = str(http.state.balance.level)
    reasons = [
        f"The provider {name} fails, and is left alone for a while." for name, it in circuits.items() if it == "open"
    ]
    if balance == "low":
        reasons.append("The balance is too low to place calls.")
    found = Readiness(status="degraded" if reasons else "ok", reasons=reasons, circuits=circuits, balance=balance)
    try:
        await service.ready()
    except StoreUnavailable as error:
        found.status = "unavailable"
        found.reasons.insert(0, detail_of(error))
        return respond(found, HTTPStatus.SERVICE_UNAVAILABLE)
    return respond(found)


@router.get("/metrics", include_in_schema=False)
async def metrics(http: Request) -> Response:
    """Return the metrics to whoever has a key of theirs: they show what was spent, and the balance."""
    authenticate(http, "metrics_keys")
    exposition: Exposition = http.state.metrics
    return Response(await exposition.render(), media_type=exposition.content_type)


@router.get(
    "/problems/{slug}",
    response_model=ProblemType,
    operation_id="getProblemType",
    summary="What a problem type means",
    responses={**answers(HTTPStatus.OK, ProblemType), 404: plain_answer(HTTPStatus.NOT_FOUND)},
)
async def problem_type(slug: str) -> Response:
    """Explain the `type` of a problem."""
    kind = PROBLEM_TYPES.get(slug)
    if kind is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return respond(ProblemType(type=kind.uri, title=kind.title, status=kind.status, meaning=kind.meaning))
