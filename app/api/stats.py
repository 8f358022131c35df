"""The operator's route of the statistics: calls and what they cost, by client, channel, operator, day and hour."""

from datetime import date, datetime
from http import HTTPStatus
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.api.dependencies import ADMIN_KEY, ContainerDep
from app.api.responses import JsonAnswer, answers, example_of
from app.verification.stats import CallCounts, Dimension, Period, Stats, parse_zone, to_rub

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[ADMIN_KEY])


class CallFigures(BaseModel):
    """Figures of some calls. Flash calls report no end, so they are neither answered nor unanswered."""

    asked: Annotated[int, Field(description="calls that clients asked for, whatever became of them", examples=[14])]
    started: Annotated[int, Field(description="verifications whose first call was placed", examples=[10])]
    placed: Annotated[int, Field(description="calls that were placed, or may have been", examples=[12])]
    unconfirmed: Annotated[int, Field(description="of these, calls that may not have been placed", examples=[0])]
    answered: Annotated[int, Field(examples=[9])]
    busy: Annotated[int, Field(examples=[0])]
    no_answer: Annotated[int, Field(examples=[2])]
    failed: Annotated[int, Field(examples=[1])]
    verified: Annotated[int, Field(description="calls that verified somebody", examples=[9])]
    conversion: Annotated[
        float | None, Field(description="verified calls by placed ones; null without any", examples=[0.75])
    ]
    spend_rub: Annotated[
        float, Field(description="what they cost, computed by the prices in the settings", examples=[27.9])
    ]

    @staticmethod
    def of(counts: CallCounts) -> dict[str, Any]:
        """Return the figures of some counts."""
        return {
            **{name: counts[name] for name in ("asked", "started", "verified", "unconfirmed", *_UNANSWERED)},
            "placed": counts.placed,
            "answered": counts.answered,
            "conversion": None if counts.conversion is None else round(counts.conversion, 4),
            "spend_rub": float(counts.spend_rub),  # has at most 15 digits, so JSON shows it exactly
        }


_UNANSWERED = ("busy", "no_answer", "failed")


class StatsRow(CallFigures):
    """The figures of the calls that have something in common."""

    group: Annotated[
        dict[Dimension, str], Field(description="what, by the names in `by`", examples=[{"client": "shop"}])
    ]


class StatsReport(BaseModel):
    """The statistics of a period. Test numbers are not counted."""

    first_day: Annotated[date, Field(examples=["2026-01-01"])]
    last_day: Annotated[date, Field(examples=["2026-01-31"])]
    tz: Annotated[str, Field(description="the time zone of the days", examples=["Europe/Moscow"])]
    total: Annotated[CallFigures, Field(examples=[example_of(CallFigures)])]
    rows: Annotated[
        list[StatsRow], Field(description="one for each group, if there is `by`", examples=[[example_of(StatsRow)]])
    ]
    refused: Annotated[
        dict[str, dict[str, int]],
        Field(
            description="calls that the provider did not place, by channel and kind",
            examples=[{"voice": {"rejected": 1}}],
        ),
    ]
    limits: Annotated[
        dict[str, int], Field(description="starts and checks that a limit refused", examples=[{"call_cooldown": 1}])
    ]
    wrong_codes: Annotated[int, Field(examples=[4])]
    locked: Annotated[int, Field(description="verifications locked by wrong codes", examples=[0])]
    canceled: Annotated[int, Field(examples=[1])]
    balance_fall_rub: Annotated[
        float, Field(description="by how much the balance at Plusofon fell, between two reads", examples=[28.1])
    ]
    balance_rise_rub: Annotated[
        float, Field(description="by how much it rose, less what calls cost then", examples=[0])
    ]

    @classmethod
    def of(cls, stats: Stats) -> Self:
        """Return the report of some statistics."""
        refused: dict[str, dict[str, int]] = {}
        for (channel, kind), count in stats.refused.items():
            refused.setdefault(channel, {})[kind] = count
        return cls.model_validate(
            {
                "first_day": stats.period.first,
                "last_day": stats.period.last,
                "tz": str(stats.period.zone),
                "total": CallFigures.of(stats.total),
                "rows": [
                    {"group": dict(zip(stats.by, group, strict=True)), **CallFigures.of(counts)}
                    for group, counts in sorted(stats.rows.items())
                ],
                "refused": refused,
                "limits": dict(stats.limits),
                "wrong_codes": stats.others["wrong"],
                "locked": stats.others["locked"],
                "canceled": stats.others["canceled"],
                "balance_fall_rub": float(to_rub(stats.others["balance_fall"])),
                "balance_rise_rub": float(to_rub(stats.others["balance_rise"])),
            }
        )


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
