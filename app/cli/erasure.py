"""``forget``: erases what is stored about a phone."""

import json
from dataclasses import asdict

import typer

from app.cli.common import AsJson, Yes, examples, fail
from app.cli.phone import PhoneArgument, read_phone
from app.cli.stores import run_with_stores, settings_with_redis
from app.settings import SettingsError

cli = typer.Typer()


@cli.command(epilog=examples("forget +79001234567", "forget +79001234567 --yes --json"))
def forget(phone: PhoneArgument, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Erase all that Redis holds about a phone.

    That is its verifications with their calls, events, kept answers, and its attempts in the journal. What stays
    identifies no person: limits of ranges and addresses, daily counts, redemptions of tokens of erased verifications,
    and, for a day at most, answers kept for an Idempotency-Key with a masked phone. The phone's own limits are reset.
    Logs have no phone. Webhooks that were delivered stay with their receiver.
    """
    number = read_phone(phone)
    settings = settings_with_redis()
    if settings.secret.key is None:
        raise SettingsError(["SECRET_KEY is missing: the names under which a phone is stored are derived from it."])
    if not yes and not typer.confirm(f"Erase all that is stored about {number.masked}?", err=True):
        raise fail("Nothing was erased.")
    done = run_with_stores(lambda stores: stores.phone_eraser.erase(number), settings)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
    elif not done:
        typer.echo("Nothing is stored under the keys of these settings (SECRET_KEY, SECRET_NAMES_KEY).")
    else:
        typer.echo(
            f"Erased: {done.verifications} verifications with {done.calls} calls, {done.events} events that were not"
            f" delivered, {done.answers} kept answers, {done.attempts} attempts in the"
            f" journal{', and the record of the phone' if done.phone else ''}."
        )
