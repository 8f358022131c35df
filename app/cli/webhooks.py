"""``events failed`` and ``events resend``: the webhooks that could not be delivered."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from app.api.operator_schemas import FailedWebhook
from app.cli.common import AsJson, examples, fail
from app.cli.stores import run_with_stores
from app.verification.webhooks import DeadLetter

cli = typer.Typer()


@cli.command(epilog=examples("events failed", "events failed --json"))
def failed(*, as_json: AsJson = False) -> None:
    """List the events that were given up, the oldest first."""
    dead_letters = run_with_stores(lambda stores: stores.webhooks.dead_letters())
    if as_json:
        facts = [FailedWebhook.of(letter).model_dump(mode="json") for letter in dead_letters]
        typer.echo(json.dumps(facts, indent=2))
    else:
        typer.echo(_table(dead_letters))


@cli.command(epilog=examples("events resend msg_0a11b22c33d44e55f667788-3", "events resend --all"))
def resend(
    event_id: Annotated[str | None, typer.Argument(metavar="ID", help="Such as msg_0a11b22c33d44e55f667788-3.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that were given up.")] = False,
) -> None:
    """Send an event that was given up again, with all its attempts."""
    if everything == (event_id is not None):
        raise typer.BadParameter("give either an ID or --all")
    if event_id is None:
        count = run_with_stores(lambda stores: stores.webhooks.resend_all())
        typer.echo(f"{count} events are sent again." if count != 1 else "1 event is sent again.")
    elif run_with_stores(lambda stores: stores.webhooks.resend(event_id)):
        typer.echo(f"The event {event_id} is sent again.")
    else:
        raise fail(f"There is no event {event_id} that was given up.")


def _table(dead_letters: Sequence[DeadLetter]) -> str:
    lines = [f"{'id':37}{'type':24}{'client':16}{'tries':>5}  {'given up (UTC)':21}last error"]
    lines += [
        f"{letter.event.id:37}{letter.event.type:24}{letter.event.client:16}{letter.attempts:>5}"
        f"  {letter.died_at:%Y-%m-%d %H:%M:%S}  {letter.error}"
        for letter in dead_letters
    ]
    return "\n".join(lines) if dead_letters else "none"
