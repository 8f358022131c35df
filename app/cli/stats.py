"""``stats``: the calls of a period and what they cost, over all processes and machines."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Annotated

import typer

from app.api.operator_schemas import CallFigures, StatsReport
from app.cli.common import EXIT_FAILED, AsJson, examples
from app.cli.stores import run_with_stores, settings_with_redis
from app.store.attempts import FINISHED_AFTER
from app.stores import Stores
from app.verification.stats import CallCounts, Dimension, InvalidPeriod, Period, Stats, parse_zone, to_rub

cli = typer.Typer()

_RECOUNTED = (Dimension.CLIENT, Dimension.CHANNEL, Dimension.OPERATOR)
_COLUMNS = ("asked", "placed", "answered", "verified", "conversion", "spend_rub")


def _read_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("must be a day such as 2026-01-31") from None


def _check_zone(name: str | None) -> str | None:
    try:
        if name:
            parse_zone(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return name


@cli.command(
    epilog=examples("stats", "stats --by client --month 2026-01 --csv", "stats --by operator --by hour --json")
)
def stats(
    *,
    by: Annotated[
        list[Dimension] | None, typer.Option(help="A row for each client, channel, …; may be given several times.")
    ] = None,
    day: Annotated[
        date | None, typer.Option(parser=_read_day, metavar="YYYY-MM-DD", help="One day; without a period, today.")
    ] = None,
    month: Annotated[str | None, typer.Option(metavar="YYYY-MM", help="One month, such as 2026-01.")] = None,
    first: Annotated[
        date | None, typer.Option("--from", parser=_read_day, metavar="YYYY-MM-DD", help="The first day.")
    ] = None,
    last: Annotated[
        date | None,
        typer.Option("--to", parser=_read_day, metavar="YYYY-MM-DD", help="The last day; without it, today."),
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option("--tz", callback=_check_zone, help="The time zone of days; without it, STATS_TIMEZONE."),
    ] = None,
    recount: Annotated[
        date | None,
        typer.Option(
            parser=_read_day,
            metavar="YYYY-MM-DD",
            help="Compare a day with the journal of attempts, by client, channel and operator, or some of them (--by);"
            " exit code 1 if they differ.",
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for a spreadsheet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print calls, conversion and spend, of today or a month.

    Test numbers are not counted. Days are kept for 400 days. Hours, and with them other time zones than STATS_TIMEZONE,
    go back 35 days.
    """
    one_day = recount or day
    if recount and not set(by or ()) <= set(_RECOUNTED):
        raise typer.BadParameter("a recount is by client, channel and operator", param_hint="--by")
    settings = settings_with_redis()

    async def read(stores: Stores) -> tuple[Stats, Stats | None]:
        store, attempts = stores.stats, stores.attempts
        now = datetime.now(parse_zone(zone) if zone else store.zone)
        period = Period.choose(now, month=month, first=one_day or first, last=one_day or last)
        if not recount:
            return await store.read(period, by or ()), None
        if now - period.begin > timedelta(days=settings.journal.days):
            raise InvalidPeriod("recount", f"the journal is kept for {settings.journal.days} days (JOURNAL_DAYS)")
        journaled = attempts.finished(period.begin - FINISHED_AFTER, period.end)
        compared = by or _RECOUNTED
        return await store.read(period, compared), await store.recount(period, journaled, compared)

    try:
        found, journaled = run_with_stores(read, settings)
    except InvalidPeriod as error:
        raise typer.BadParameter(error.reason, param_hint=f"--{error.parameter}") from None
    if journaled:
        _compare(found, journaled, as_json=as_json)
    elif as_csv:
        _write_csv(found)
    elif as_json:
        typer.echo(StatsReport.of(found).model_dump_json(indent=2))
    else:
        typer.echo("\n".join(_rows(found) if by else _overview(found)))


def _compare(counted: Stats, journaled: Stats, *, as_json: bool) -> None:
    """Print each group as it was counted, and as the journal has it. Raise Exit if they differ."""
    groups = sorted({*counted.rows, *journaled.rows})
    pairs = [[_compared(stats.rows.get(group, CallCounts())) for stats in (counted, journaled)] for group in groups]
    differing = sum(ours != theirs for ours, theirs in pairs)
    if as_json:
        rows = [
            {**dict(zip(counted.by, group, strict=True)), "counted": ours, "journal": theirs}
            for group, (ours, theirs) in zip(groups, pairs, strict=True)
        ]
        typer.echo(json.dumps({"differing": differing, "rows": rows}, indent=2))
    else:
        typer.echo(_title(counted))
        table = [[*counted.by, "", *_compared(CallCounts())]]
        for group, pair in zip(groups, pairs, strict=True):
            table += [
                [*group, name, *map(str, one.values())] for name, one in zip(("counted", "journal"), pair, strict=True)
            ]
        typer.echo("\n".join(_aligned(table, left=len(counted.by) + 1)))
        typer.echo(f"Different: {differing}." if differing else "They agree.")
    if differing:
        raise typer.Exit(EXIT_FAILED)


def _compared(counts: CallCounts) -> dict[str, int | str]:
    return {
        "placed": counts.placed,
        "answered": counts.answered,
        "unanswered": counts.unanswered,
        "verified": counts["verified"],
        "spend_rub": str(counts.spend_rub),
    }


def _aligned(table: Sequence[Sequence[str]], *, left: int) -> Iterator[str]:
    """Return the lines of a table, whose first columns are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:left], widths, strict=False)]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[left:], widths[left:], strict=True)]
        yield "  ".join(cells).rstrip()


def _write_csv(found: Stats) -> None:
    """Write a line for each row, or one for all calls; decimals have a point, and conversion is a share of 1."""
    names = [name for name in CallFigures.model_fields if name != "spend_rub"]
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow([*found.by, *names, "spend_rub"])
    for group, counts in sorted(found.rows.items()) if found.by else [((), found.total)]:
        figures = CallFigures.of(counts)
        out.writerow([*group, *(figures[name] for name in names), counts.spend_rub])


def _title(found: Stats) -> str:
    period = found.period
    days = f"{period.first}" if period.first == period.last else f"{period.first} to {period.last}"
    return f"{days} ({period.zone})"


def _rows(found: Stats) -> Iterator[str]:
    """Return a table: a row for each group, their sum, and the fall of the balance."""
    groups = [[*group, *_cells(counts)] for group, counts in sorted(found.rows.items())]
    total = ["total", *[""] * (len(found.by) - 1), *_cells(found.total)]
    table = [[*found.by, *_COLUMNS], *groups, total]
    yield _title(found)
    yield from _aligned(table, left=len(found.by))
    yield _balance(found)


def _cells(counts: CallCounts) -> Sequence[str]:
    calls = (counts["asked"], counts.placed, counts.answered, counts["verified"])
    return [*map(str, calls), _share(counts["verified"], counts.placed), str(counts.spend_rub)]


def _overview(found: Stats) -> Iterator[str]:
    total, others = found.total, found.others
    ended = total.answered + total.unanswered
    refusals = Counter[str]()
    for (_, kind), count in found.refused.items():
        refusals[kind] += count
    yield _title(found)
    verified, started = total["verified"], total["started"]
    yield f"verifications  {started:>7}   verified {verified} ({_share(verified, started)})"
    yield f"calls placed   {total.placed:>7}   of {total['asked']} asked, unconfirmed {total['unconfirmed']}"
    yield f"calls ended    {ended:>7}   answered {total.answered} ({_share(total.answered, ended)})"
    yield f"calls refused  {refusals.total():>7}   {_list(refusals)}"
    yield f"limits hit     {sum(found.limits.values()):>7}   {_list(found.limits)}"
    yield f"wrong codes    {others['wrong']:>7}   locked {others['locked']}, canceled {others['canceled']}"
    yield f"spend          {total.spend_rub:>7}   RUB, by CALL_PRICE_RUB and the prices after it"
    yield _balance(found)


def _balance(found: Stats) -> str:
    fall, rise = to_rub(found.others["balance_fall"]), to_rub(found.others["balance_rise"])
    return f"balance fell   {fall:>7}   RUB" + (f", and rose by {rise}" if rise else "")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
