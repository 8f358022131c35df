"""``forget``: erases what is stored about a phone, when a person asks for that."""

import json
from dataclasses import asdict

import typer

from app.cli.common import AsJson, PhoneArgument, Yes, ask_redis, fail, read_phone, settings_with_redis
from app.settings import SettingsError
from app.store.erasure import Erased
from app.wiring import open_phone_eraser


def forget(phone: PhoneArgument, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Erase all that Redis holds about a phone: verifications and their calls, events, kept answers.

    What stays names nobody: limits over ranges of a thousand numbers and over addresses, counters of days, redemptions
    of tokens under ids that exist no more, and, for a day at most, answers kept for an Idempotency-Key that hold only a
    mask. The phone's own limits begin anew. Logs hold no phone. What a webhook has told is with its receiver.
    """
    number = read_phone(phone)
    settings = settings_with_redis()
    if settings.secret.key is None:
        raise SettingsError(["SECRET_KEY is missing: without it nobody knows under which names a phone is stored."])
    if not yes and not typer.confirm(f"Erase all that is stored about {number.masked}?", err=True):
        raise fail("Nothing was erased.")
    done = ask_redis(open_phone_eraser, lambda eraser: eraser.forget(number), settings=settings)
    typer.echo(json.dumps(asdict(done)) if as_json else _told(done))


def _told(done: Erased) -> str:
    if not done:
        return "Nothing is stored under the keys of these settings (SECRET_KEY, SECRET_NAMES_KEY)."
    return (
        f"Erased: {done.verifications} verifications with {done.calls} calls, {done.events} events that were not"
        f" delivered, {done.answers} kept answers{', and what the phone was remembered by' if done.phone else ''}."
    )
