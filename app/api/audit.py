"""The audit of admin keys: which requests changed something, by whom and when."""

import re
from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.dependencies import ADMIN_KEY, ContainerDep, ExchangeDep
from app.api.responses import JsonAnswer, answers
from app.api.schemas import Moment, example_of

_PHONE = re.compile(r"(\d{7})\d{3,}")  # a path may have one by mistake, and the audit outlives its erasure
router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[ADMIN_KEY])


async def record_change(exchange: ExchangeDep, container: ContainerDep, admin: Annotated[str, ADMIN_KEY]) -> None:
    """Record a request before its route changes anything. Raises StoreUnavailable: then it changes nothing."""
    path = _PHONE.sub(r"\1…", exchange.path.removeprefix(exchange.path_prefix))
    await container.stores.audit.record(admin, f"{exchange.method} {path}")


Audited = Depends(record_change)
"""The dependency of each route that changes something with an admin key."""


class AuditEntry(BaseModel):
    """A request with an admin key that was about to change something."""

    model_config = ConfigDict(from_attributes=True)

    at: Annotated[datetime, Field(examples=["2026-01-31T09:00:00Z"])]
    admin: Annotated[str, Field(description="the name of the key in `ADMIN_KEYS`", examples=["ops"])]
    action: Annotated[str, Field(description="method and path", examples=["DELETE /admin/guard/+79001234"])]


class Audit(BaseModel):
    """What admin keys changed."""

    entries: Annotated[list[AuditEntry], Field(description="the latest first", examples=[[example_of(AuditEntry)]])]


class AuditQuery(BaseModel):
    """A page of the audit."""

    model_config = ConfigDict(extra="forbid")

    before: Annotated[Moment | None, Field(description="older than this; for the next page, the last `at`")] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="how many at most")] = 100


@router.get(
    "/audit",
    response_model=Audit,
    operation_id="listAudit",
    summary="List what admin keys changed",
    responses=answers(HTTPStatus.OK, Audit, problems=("validation-failed", "unauthorized", "store-unavailable")),
)
async def list_audit(container: ContainerDep, query: Annotated[AuditQuery, Query()]) -> Response:
    """Return the requests that changed something. The last 10,000 are kept, for 400 days."""
    found = await container.stores.audit.read(before=query.before, most=query.limit)
    return JsonAnswer(Audit.model_validate({"entries": found}))
