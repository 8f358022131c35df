"""The rules of verifications: lifetimes, cooldowns, numbers of calls and checks, and limits. Defaults: the settings."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

from app.verification.channels import Channel
from app.verification.errors import NotAllowed
from app.verification.fraud_guard import GuardAction, range_of
from app.verification.phone import Phone, parse_phone
from app.verification.values import value

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, for a cache
class Limit:
    """At most ``count`` events in any window of length ``period``. Clients see its ``name``."""

    name: str
    count: int
    period: timedelta


@value
class Allowance:
    """One event that counts against a limit for ``subject``: an address, a range of numbers, a client.

    With a ``guard`` it is a call that counts for the fraud guard too, which does so if the subject's conversion is low.
    """

    limit: Limit
    subject: str
    guard: GuardAction | None = None


@value
class Quota:
    """What remains of a limit after the event."""

    limit: Limit
    remaining: int


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots, for what is computed once
class Policy:
    """The rules for the verifications of one client. Compared by identity, so that a cache can have them as its key.

    ``cooldowns`` are the pauses after the first, second, … call to a phone; the last one holds for all later calls.
    The count of a phone starts anew once the longest cooldown has passed after the pause itself, so waiting for that is
    never faster than obeying it.

    ``channels`` are those allowed, in order of preference; ``operator_channels`` come first for the phones of an
    operator. ``checks`` is the number of checks of a verification, ``flash_call_checks`` that of a flash call (a code
    of four digits). A reverse call cannot be confirmed before ``earliest_dial`` has passed. ``call_timeout`` is how
    long placing a call may take, over all channels that are tried. ``repeat`` is how often a voice says the code.
    """

    code_length: int
    lifetime: timedelta
    calls: int
    checks: int
    cooldowns: tuple[timedelta, ...]
    purposes: frozenset[str]
    channels: tuple[Channel, ...]
    operator_channels: Mapping[str, Channel]
    denied_prefixes: tuple[str, ...]
    allowed_prefixes: tuple[str, ...]
    repeat: int
    flash_call_checks: int
    earliest_dial: timedelta
    call_timeout: timedelta

    calls_per_phone: tuple[Limit, ...]
    calls_per_address: Limit
    calls_per_range: Limit
    calls_per_client: tuple[Limit, ...]
    calls_per_day: Limit
    failed_checks_per_phone: Limit
    failed_checks_per_address: Limit
    failed_checks_per_client: Limit
    test_starts_per_client: Limit

    def require_allowed(self, purpose: str, channels: Collection[Channel] = ()) -> None:
        """Return if a client may use them. Raise NotAllowed if not."""
        if purpose not in self.purposes:
            raise NotAllowed("purpose", self.purposes)
        if not set(channels) <= set(self.channels):
            raise NotAllowed("channel", frozenset(self.channels))

    def parse_phone(self, text: str) -> Phone:
        """Return the phone number, if it may be called. Raise PhoneNotCallable if not."""
        return parse_phone(text, denied_prefixes=self.denied_prefixes, allowed_prefixes=self.allowed_prefixes)

    @cached_property
    def failed_checks_per_phone_and_address(self) -> Limit:
        """The limit on a phone's failed checks from one address.

        A third of all, so that one attacker cannot use them up; but at least what one verification may use.
        """
        whole = self.failed_checks_per_phone
        share = max(whole.count // 3, self.calls * max(self.checks_of(channel) for channel in self.channels))
        return Limit("failed_checks_per_phone_and_address", min(whole.count, share), whole.period)

    def code_length_of(self, channel: Channel) -> int | None:
        """Return the number of digits of a code; None if the channel has no code."""
        return (channel.rules.code_length or self.code_length) if channel.rules.has_code else None

    def checks_of(self, channel: Channel) -> int:
        """Return how many checks a verification allows."""
        return min(self.checks, self.flash_call_checks) if channel.rules.is_easily_guessed else self.checks

    def for_calls(self, *, client: str, phone: Phone, address: str | None, test: bool = False) -> tuple[Allowance, ...]:
        """Return what a call counts against, besides the phone itself. ``address`` is the end user's.

        A start for a test number places no call, but takes memory in Redis.
        """
        if test:
            return (Allowance(self.test_starts_per_client, client),)
        of_client, *others = self.calls_per_client
        if phone.e164.startswith(self.allowed_prefixes):
            allowances = [Allowance(of_client, client)]
        else:
            allowances = [
                Allowance(self.calls_per_range, range_of(phone), GuardAction.BLOCK),
                Allowance(of_client, client, GuardAction.REPORT),
            ]
        allowances += [Allowance(limit, client) for limit in others]
        allowances.append(Allowance(self.calls_per_day, "everybody"))
        if address:
            allowances.append(Allowance(self.calls_per_address, address))
        return tuple(allowances)

    def for_failed_checks(self, *, client: str, address: str | None) -> Iterator[Allowance]:
        """List what a failed check counts against, besides the phone itself."""
        yield Allowance(self.failed_checks_per_client, client)
        if address:
            yield Allowance(self.failed_checks_per_address, address)


@dataclass(frozen=True, slots=True)
class Policies:
    """The rules of each client: its own, or the default."""

    default: Policy
    of_client: Mapping[str, Policy] = field(default_factory=dict)

    def for_client(self, client: str) -> Policy:
        """Return the rules of a client."""
        return self.of_client.get(client, self.default)

    async def gauges(self) -> Mapping[str, float]:
        """Return how many calls everybody together may place in a day, for the metrics."""
        return {"call_budget": self.default.calls_per_day.count}
