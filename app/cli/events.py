"""``events``: the webhook events of a sandbox as they happen, and those that no attempt could deliver."""

import typer

from app.cli import sandbox_events, webhooks

cli = typer.Typer(name="events", help="Watch, try and resend webhook events.", no_args_is_help=True)
cli.add_typer(webhooks.cli)
cli.add_typer(sandbox_events.cli)
