"""``guard list`` and ``guard lift``: the blocks of the fraud guard."""

import re
from typing import Annotated

import typer

from app.api.operator_schemas import FraudGuardReport
from app.cli.common import AsJson, examples, fail
from app.cli.stores import run_with_stores

_PUNCTUATION = re.compile(r"[\s().-]")
_RANGE = re.compile(r"(?:\+?7|8)?(9\d{6})(?:\d{3})?")  # a whole phone lies in one too

cli = typer.Typer(name="guard", help="See what the fraud guard has blocked, and lift it.", no_args_is_help=True)


@cli.command("list", epilog=examples("guard list", "guard list --json"))
def list_guard(*, as_json: AsJson = False) -> None:
    """List the ranges of numbers that are blocked now.

    Clients of whose calls too few end in a right code are listed below them. The JSON is that of GET /admin/guard.
    """
    found = run_with_stores(lambda stores: FraudGuardReport.of(stores.fraud_guard))
    typer.echo(found.model_dump_json(indent=2) if as_json else _table(found))


@cli.command(epilog=examples("guard lift +79001234"))
def lift(number_range: Annotated[str, typer.Argument(metavar="RANGE", help="Such as +79001234.")]) -> None:
    """Lift the block of a range: it is called again at once."""
    wanted = _read_range(number_range)
    if not run_with_stores(lambda stores: stores.fraud_guard.lift(wanted)):
        raise fail(f"The range {wanted} is not blocked.")
    typer.echo(f"The range {wanted} is called again.")


def _read_range(text: str) -> str:
    match = _RANGE.fullmatch(_PUNCTUATION.sub("", text))
    if not match:
        raise typer.BadParameter("a range is +7 and the next seven digits of its numbers, such as +79001234")
    return f"+7{match[1]}"


def _table(found: FraudGuardReport) -> str:
    lines = [f"{'blocked range':16}{'until (UTC)':22}{'level':>6}{'calls':>7}{'verified':>10}"]
    lines += [
        f"{block.range:16}{block.until:%Y-%m-%d %H:%M:%S}   {block.level:>6}{block.calls:>7}{block.successes:>10}"
        for block in found.blocks
    ]
    if not found.blocks:
        lines.append("none")
    lines += [
        f"The client {suspect.client} is not blocked, but of {suspect.calls} calls {suspect.successes} were verified"
        f" (at {suspect.since:%Y-%m-%d %H:%M:%S} UTC)."
        for suspect in found.suspects
    ]
    return "\n".join(lines)
