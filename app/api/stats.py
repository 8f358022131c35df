"""The operator's route of the statistics: calls and what they cost, by client, channel, operator, day and hour."""

from datetime import date, datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.api.dependencies import ADMIN_KEY, ContainerDep
from app.api.operator_schemas import StatsReport
from app.api.responses import JsonAnswer, answers
from app.verification.stats import Dimension, Period, parse_zone

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[ADMIN_KEY])


def _check_zone(name: str) -> str:
    parse_zone(name)
    return name


class StatsQuery(BaseModel):
    """A period, and the groups of its figures."""

    model_config = ConfigDict(extra="forbid")

    by: Annotated[list[Dimension], Field(description="the group of each row", examples=[["client"]])] = []
    month: Annotated[
        str | None, Field(pattern="^[0-9]{4}-[0-9]{2}$", description="a month, in place of days", examples=["2026-01"])
    ] = None
    first: Annotated[date | None, Field(alias="from", description="the first day", examples=["2026-01-01"])] = None
    to: Annotated[date | None, Field(description="the last day; without it, today", examples=["2026-01-31"])] = None
    tz: Annotated[
        str | None,
        AfterValidator(_check_zone),
        Field(description="a time zone; without it, that of `STATS_TIMEZONE`", examples=["Europe/Moscow"]),
    ] = None


@router.get(
    "/stats",
    response_model=StatsReport,
    operation_id="getStats",
    summary="Read what was called, and what it cost",
    responses=answers(HTTPStatus.OK, StatsReport, problems=("validation-failed", "unauthorized", "store-unavailable")),
)
async def read_stats(container: ContainerDep, query: Annotated[StatsQuery, Query()]) -> Response:
    """Return the figures of a month, of some days, or of today.

    Days are kept for 400 days, in the time zone of `STATS_TIMEZONE`; hours, which add up to the days of any time zone,
    for 35 days.
    """
    stats = container.stores.stats
    now = datetime.now(parse_zone(query.tz) if query.tz else stats.zone)
    period = Period.choose(now, month=query.month, first=query.first, last=query.to)
    return JsonAnswer(StatsReport.of(await stats.read(period, query.by)))
