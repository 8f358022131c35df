"""The routes for operations: liveness, readiness, metrics, and the meaning of each problem type."""

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from app.api.dependencies import ContainerDep, ExchangeDep, authenticate
from app.api.problem_types import PROBLEM_TYPES, detail_of
from app.api.responses import JsonAnswer, answers, plain_answer
from app.verification.errors import StoreUnavailable

router = APIRouter(tags=["operations"])


class Liveness(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the service can do its work; if not, `reasons` say why."""

    status: Annotated[Literal["ok", "degraded", "unavailable"], Field(examples=["ok"])]
    reasons: Annotated[list[str], Field(examples=[[]])]
    circuits: Annotated[
        dict[str, str],
        Field(description="of each provider: `closed`, `open` or `half_open`", examples=[{"plusofon": "closed"}]),
    ]
    balance: Annotated[str, Field(description="`ok`, `warning`, `low` or `unknown`", examples=["ok"])]


class ProblemType(BaseModel):
    """What a problem's `type` means."""

    type: Annotated[str, Field(examples=["/problems/call-cooldown"])]
    title: Annotated[str, Field(examples=["This phone was called a moment ago"])]
    status: Annotated[int, Field(examples=[429])]
    meaning: Annotated[str, Field(examples=["Wait `retry_after` seconds before the next call."])]


@router.get(
    "/livez",
    response_model=Liveness,
    operation_id="getLiveness",
    summary="The process is up",
    responses=answers(HTTPStatus.OK, Liveness),
)
async def livez() -> Response:
    """Answer without asking Redis or a provider: a restart would not repair those."""
    return JsonAnswer(Liveness())


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
async def readyz(container: ContainerDep) -> Response:
    """Return whether requests should be sent here: 503 while Redis does not take and return what is written.

    Redis is probed at most once a second, however many requests ask.

    While a provider fails (its circuit is `open`) or the balance is too low, no call is placed, but codes that were
    given can still be checked. So that is `degraded` and no 503, which would take every server out of service at once.
    """
    circuits = {name: str(state) for name, state in container.providers.circuit_states().items()}
    balance = str(container.providers.balance.level)
    reasons = [
        f"The provider {name} fails, and is left alone for a while."
        for name, state in circuits.items()
        if state == "open"
    ]
    if balance == "low":
        reasons.append("The balance is too low to place calls.")
    found = Readiness(status="degraded" if reasons else "ok", reasons=reasons, circuits=circuits, balance=balance)
    try:
        await container.stores.runner.ping()
    except StoreUnavailable as error:
        found.status = "unavailable"
        found.reasons.insert(0, detail_of(error))
        return JsonAnswer(found, HTTPStatus.SERVICE_UNAVAILABLE)
    return JsonAnswer(found)


@router.get("/metrics", include_in_schema=False)
async def metrics(exchange: ExchangeDep) -> Response:
    """Return the metrics. They show the balance and what was spent, so they need a key."""
    container = exchange.container
    authenticate(exchange, container.keys.metrics)
    return Response(await container.exposition.render(), media_type=container.exposition.content_type)


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
    return JsonAnswer(ProblemType(type=kind.uri, title=kind.title, status=kind.status, meaning=kind.meaning))
