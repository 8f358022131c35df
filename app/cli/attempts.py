"""``attempts find``, ``list`` and ``show``: what became of a call."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from pydantic import BaseModel

from app.api import operator_schemas as views
from app.cli.common import AsJson, examples, fail
from app.cli.phone import PhoneArgument, read_phone
from app.cli.stores import run_with_stores
from app.stores import Stores
from app.verification.attempts import Attempt, AttemptFilter, Outcome, Result
from app.verification.channels import Channel

_ID = "vrf_0a11b22c33d44e55f667788"
_DURATION = re.compile(r"([1-9][0-9]{0,3})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_LONGEST_LIST = 10_000

cli = typer.Typer(name="attempts", help="See what became of each call.", no_args_is_help=True)


def _read_since(text: str) -> datetime:
    """Return the moment that ``90m``, ``24h``, ``7d`` or a date and time in UTC stands for."""
    if match := _DURATION.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("must be such as 90m, 24h, 7d, 2026-01-31 or 2026-01-31T14:05 (UTC)") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_Since = Annotated[
    datetime | None,
    typer.Option(parser=_read_since, metavar="SINCE", help="Since 90m, 24h, 7d, 2026-01-31 or 2026-01-31T14:05 (UTC)."),
]


@cli.command(epilog=examples("attempts find +79001234567", "attempts find +79001234567 --since 24h --json"))
def find(phone: PhoneArgument, since: _Since = None, *, as_json: AsJson = False) -> None:
    """Find the attempts to call a phone.

    The latest is first. Below are the starts that were refused before the provider was asked. The JSON is that of
    POST /admin/attempts/find.
    """
    number, since = read_phone(phone), since or datetime.min.replace(tzinfo=UTC)
    found = run_with_stores(lambda stores: views.PhoneAttempts.of(stores.attempts, number, since))
    if as_json:
        _print_json(found)
        return
    if not found.attempts and not found.refused_starts:
        raise fail(
            "Nothing is known of this phone: nobody asked to call it, the request was not valid or Redis was away,"
            " or it is too long ago (JOURNAL_DAYS)."
        )
    typer.echo("\n".join(_table(found.attempts)))
    for starts in found.refused_starts:
        times = "once" if starts.count == 1 else f"{starts.count} times"
        typer.echo(f"{starts.hour:%Y-%m-%d %H}:00-{starts.hour:%H}:59  refused {times}: {starts.reason}")


@cli.command("list", epilog=examples("attempts list --outcome busy", "attempts list --client shop --since 7d"))
def list_attempts(
    *,
    client: Annotated[str | None, typer.Option(help="Of this client alone.")] = None,
    channel: Annotated[Channel | None, typer.Option(help="By this channel alone.")] = None,
    operator: Annotated[str | None, typer.Option(help="To phones of this operator alone.")] = None,
    reference: Annotated[str | None, typer.Option(help="Of verifications with this reference alone.")] = None,
    outcome: Annotated[
        Result | None,
        typer.Option(metavar="WORD", help=f"With this in column 5, 6 or 7: {', '.join(Result)}."),
    ] = None,
    since: _Since = None,
    most: Annotated[int, typer.Option("--limit", min=1, max=_LONGEST_LIST, help="How many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List attempts to call.

    The latest is first. Without SINCE they are those of the last day.
    """
    wanted = AttemptFilter(client=client, channel=channel, operator=operator, reference=reference, result=outcome)
    begin = since or datetime.now(UTC) - timedelta(days=1)

    async def collect(stores: Stores) -> Sequence[Attempt]:
        found: list[Attempt] = []
        before: datetime | None = datetime.now(UTC)
        while before and len(found) < most:
            page = await stores.attempts.page(wanted, since=begin, before=before, most=most - len(found))
            found, before = [*found, *page.attempts], page.next_before
        return found

    found = views.Attempts.model_validate({"attempts": run_with_stores(collect)})
    if as_json:
        _print_json(found)
    else:
        typer.echo("\n".join(_table(found.attempts)))


@cli.command(epilog=examples(f"attempts show {_ID}", f"attempts show {_ID} --json"))
def show(
    verification_id: Annotated[str, typer.Argument(metavar="ID", help=f"Such as {_ID}.")], *, as_json: AsJson = False
) -> None:
    """Show what happened to a verification.

    All its calls are shown, in the order of time. The JSON is that of GET /admin/attempts/{verification_id}.
    """
    found = views.Attempts.model_validate(
        {"attempts": run_with_stores(lambda stores: stores.attempts.of_verification(verification_id))}
    )
    if not found.attempts:
        raise fail("The journal has no such verification: it never was, or it is too long ago (JOURNAL_DAYS).")
    if as_json:
        _print_json(found)
    else:
        typer.echo("\n".join(_story(found.attempts)))


def _print_json(found: BaseModel) -> None:
    typer.echo(found.model_dump_json(indent=2))


def _table(attempts: Sequence[views.Attempt]) -> Iterator[str]:
    yield f"{'started (UTC)':21}{'phone':15}{'client':12}{'channel':14}{'outcome':13}{'call':11}{'verification':14}id"
    for one in attempts:
        call = one.call_status if one.call_status and one.outcome is Outcome.PLACED else "-"
        yield (
            f"{one.started_at:%Y-%m-%d %H:%M:%S}  {one.phone:15}{one.client:12}{one.channel:14}{one.outcome:13}"
            f"{call:11}{one.ending or '-':14}{one.verification_id}"
        )
        if one.reference:
            yield f"{'':21}reference {one.reference}"
        if one.reason:
            yield f"{'':21}{one.reason}"
    if not attempts:
        yield "none"


def _story(attempts: Sequence[views.Attempt]) -> Iterator[str]:
    first = attempts[0]
    yield f"{first.verification_id}   {(attempts[-1].ending or 'no call').upper()}"
    yield f"phone     {first.phone}, operator {first.operator}"
    yield f"client    {first.client}, purpose {first.purpose}"
    if first.reference:
        yield f"reference {first.reference}"
    if consent := attempts[-1].consent:
        yield f"consent   {consent.version}, {consent.at:%Y-%m-%d %H:%M:%S} UTC"
    yield f"codes     {first.wrong_codes} wrong"
    yield f"cost      {sum(one.cost_rub for one in attempts)} RUB"
    entries = [(entry, one) for one in attempts for entry in one.timeline]
    for entry, one in sorted(entries, key=lambda pair: pair[0].at):
        is_placed = entry.event == Outcome.PLACED
        facts = [f"the provider says {one.reported_operator}"] if is_placed and one.reported_operator else []
        facts += [f"the provider's id {one.call_ref}"] if is_placed and one.call_ref else []
        facts += [entry.reason] if entry.reason else []
        said = f"  {', '.join(facts)}" if facts else ""
        yield f"{entry.at:%Y-%m-%d %H:%M:%S}  {one.call_number}  {one.channel:13} {entry.event}{said}"
