"""The rules of a verification: how long, how often, how many."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from app.verification.channels import Channel
from app.verification.fraud_guard import range_of
from app.verification.phone import Phone

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``count`` events in any window of length ``period``; callers know it by its ``name``."""

    name: str
    count: int
    period: timedelta


@dataclass(frozen=True, slots=True)
class Allowance:
    """One event against a limit, of whoever or whatever is counted: an address, a range of numbers, a client."""

    limit: Limit
    of: str


@dataclass(frozen=True, slots=True)
class Quota:
    """What remains of a limit after the event."""

    limit: Limit
    remaining: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the settings allow.

    ``cooldowns`` are the pauses after the first, second, … call to a phone; the last one holds for all later calls.
    A phone's streak of calls is forgotten once the longest cooldown has passed after the pause itself, so waiting for
    that is never faster than obeying it.

    ``channels`` are those that may be used, the first of them first; ``operator_channels`` come before them for the
    phones of an operator. ``flash_call_checks`` is the budget of guesses at a code of four digits. Nobody dials the
    number of a reverse call before ``earliest_dial``. ``patience`` is how long placing a call may
    take, however many channels are tried.
    """

    code_length: int = 6
    lifetime: timedelta = timedelta(minutes=5)
    calls: int = 3
    checks: int = 5
    cooldowns: tuple[timedelta, ...] = (timedelta(seconds=60), timedelta(seconds=120), timedelta(seconds=300))
    purposes: frozenset[str] = frozenset({"phone_verification", "password_reset", "login"})
    channels: tuple[Channel, ...] = (Channel.VOICE,)
    operator_channels: Mapping[str, Channel] = field(default_factory=dict)
    denied_prefixes: tuple[str, ...] = ("+7940", "+7998")
    allowed_prefixes: tuple[str, ...] = ()
    repeat: int = 2
    flash_call_checks: int = 3
    earliest_dial: timedelta = timedelta(seconds=2)
    patience: timedelta = timedelta(seconds=10)

    calls_per_phone: tuple[Limit, ...] = (
        Limit("calls_per_phone_hour", 5, HOUR),
        Limit("calls_per_phone_day", 10, DAY),
    )
    calls_per_address: Limit = Limit("calls_per_address", 10, timedelta(minutes=10))
    calls_per_range: Limit = Limit("calls_per_range", 30, HOUR)
    calls_per_client: tuple[Limit, ...] = (Limit("calls_per_client", 600, timedelta(minutes=1)),)
    calls_per_day: Limit = Limit("calls_per_day", 1000, DAY)
    failed_checks_per_phone: Limit = Limit("failed_checks_per_phone", 50, DAY)
    failed_checks_per_address: Limit | None = Limit("failed_checks_per_address", 100, timedelta(minutes=10))
    failed_checks_per_client: Limit | None = Limit("failed_checks_per_client", 1000, timedelta(minutes=10))
    test_starts_per_client: Limit = Limit("test_starts_per_client", 120, timedelta(minutes=1))

    @property
    def failed_checks_per_phone_and_address(self) -> Limit:
        """Of a phone's failed checks, those that may come from one address.

        A third, so that one stranger cannot use them up; or what one verification can cost where that is more.
        """
        whole = self.failed_checks_per_phone
        share = max(whole.count // 3, self.calls * max(self.checks_of(channel) for channel in self.channels))
        return Limit("failed_checks_per_phone_and_address", min(whole.count, share), whole.period)

    def code_length_of(self, channel: Channel) -> int | None:
        """Return how many digits a code has; none if the channel has no code."""
        return (channel.rules.code_length or self.code_length) if channel.rules.has_code else None

    def checks_of(self, channel: Channel) -> int:
        """Return how many checks a verification has."""
        return min(self.checks, self.flash_call_checks) if channel.rules.is_easily_guessed else self.checks

    def for_calls(self, *, client: str, phone: Phone, address: str | None) -> Iterator[Allowance]:
        """List what a call is counted against, beside the phone itself."""
        if not phone.e164.startswith(self.allowed_prefixes):
            yield Allowance(self.calls_per_range, range_of(phone))
        yield from (Allowance(limit, client) for limit in self.calls_per_client)
        yield Allowance(self.calls_per_day, "everybody")
        if address:
            yield Allowance(self.calls_per_address, address)

    def for_test_calls(self, *, client: str) -> Iterator[Allowance]:
        """List what a start for a test number is counted against: nobody is called, but Redis has to hold it."""
        yield Allowance(self.test_starts_per_client, client)

    def for_failed_checks(self, *, client: str, address: str | None) -> Iterator[Allowance]:
        """List what a failed check is counted against, beside the phone itself."""
        if self.failed_checks_per_client:
            yield Allowance(self.failed_checks_per_client, client)
        if self.failed_checks_per_address and address:
            yield Allowance(self.failed_checks_per_address, address)


@dataclass(frozen=True, slots=True)
class Policies:
    """The rules for each client: its own, or those for everybody."""

    default: Policy
    of_client: Mapping[str, Policy] = field(default_factory=dict)

    def for_client(self, client: str) -> Policy:
        """Return the rules that hold for a client."""
        return self.of_client.get(client, self.default)

    async def gauges(self) -> Mapping[str, float]:
        """Return how many calls everybody together may place in a day, for the metrics."""
        return {"call_budget": self.default.calls_per_day.count}
