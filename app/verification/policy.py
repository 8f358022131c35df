"""The rules of a verification: how long, how often, how many."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the settings allow.

    ``cooldowns`` are the pauses after the first, second, … call to a phone; the last one holds for all later calls.
    A phone's streak of calls is forgotten once the longest cooldown has passed after the pause itself, so waiting for
    that is never faster than obeying it.
    """

    code_length: int = 6
    lifetime: timedelta = timedelta(minutes=5)
    calls: int = 3
    checks: int = 5
    cooldowns: tuple[timedelta, ...] = (timedelta(seconds=60), timedelta(seconds=120), timedelta(seconds=300))
    purposes: frozenset[str] = frozenset({"phone_verification", "password_reset", "login"})
    denied_prefixes: tuple[str, ...] = ("+7940", "+7998")
    repeat: int = 2
    lookup_interval: timedelta = timedelta(seconds=1)
