"""``stats``: the calls and verifications of a day, over all processes and machines."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any

import typer

from app.cli.common import AsJson, run_with_container
from app.store.stats import DayStats, PlacedCalls
from app.verification.channels import Channel
from app.verification.model import CallStatus

_DAYS_KEPT = 8  # today among them


def _read_day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("must be a day such as 2026-01-31") from None
    if not 0 <= (datetime.now(UTC).date() - day).days < _DAYS_KEPT:
        raise typer.BadParameter(f"only the last {_DAYS_KEPT} days are kept")
    return day


def stats(
    day: Annotated[
        date | None,
        typer.Option(
            parser=_read_day, metavar="YYYY-MM-DD", help=f"One of the last {_DAYS_KEPT} days (UTC); without it, today."
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Print a day's calls, conversion, refusals and spend. Test numbers are not counted."""
    found = run_with_container(lambda container: container.stores.stats.read(day))
    typer.echo(json.dumps(_facts(found), indent=2) if as_json else "\n".join(_table(found)))


def _facts(found: DayStats) -> dict[str, Any]:
    return {
        "day": found.day.isoformat(),
        "started": dict(found.started),
        "placed": _by_channel(found.placed),
        "ended": _by_channel(found.ended),
        "refused": _by_channel(found.refused),
        "limits": dict(found.limits),
        "calls": found.calls,
        "verified": found.verified,
        "wrong_codes": found.wrong,
        "locked": found.locked,
        "canceled": found.canceled,
        "conversion": None if found.conversion is None else round(found.conversion, 4),
        "spend_rub": float(found.spend_rub),
    }


def _by_channel(counts: PlacedCalls | Mapping[tuple[Channel, str], int]) -> dict[str, dict[str, int]]:
    grouped: dict[str, dict[str, int]] = {}
    for (channel, kind), count in counts.items():
        grouped.setdefault(channel, {})[kind] = count
    return grouped


def _table(found: DayStats) -> Iterator[str]:
    begun, ended = sum(found.started.values()), sum(found.ended.values())
    answered = sum(count for (_, status), count in found.ended.items() if status is CallStatus.COMPLETED)
    unconfirmed = sum(count for (_, status), count in found.placed.items() if status is CallStatus.UNCONFIRMED)
    refusals = Counter[str]()
    for (_, kind), count in found.refused.items():
        refusals[kind] += count
    yield f"{found.day} (UTC)"
    yield f"verifications  {begun:>7}   verified {found.verified} ({_share(found.verified, begun)})"
    yield f"calls placed   {found.calls:>7}   unconfirmed {unconfirmed}"
    yield f"calls ended    {ended:>7}   answered {answered} ({_share(answered, ended)})"
    yield f"calls refused  {refusals.total():>7}   {_list(refusals)}"
    yield f"limits hit     {sum(found.limits.values()):>7}   {_list(found.limits)}"
    yield f"wrong codes    {found.wrong:>7}   locked {found.locked}, canceled {found.canceled}"
    yield f"spend          {found.spend_rub:>7}   RUB, each call at CALL_PRICE_RUB"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
