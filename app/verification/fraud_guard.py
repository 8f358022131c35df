"""The fraud guard: what gives artificial traffic away, and what is done about it.

Whoever earns by calls to numbers of their own (traffic pumping) has them called and never types a code. So the share
of calls that end in a verified code, the conversion, is watched for each range of a thousand numbers and for each
client. A range whose conversion is bad is blocked. A client is not: that would refuse all its honest users, so it is
reported, and people decide.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from app.verification.phone import Phone

GUARD_LIMIT = "fraud_guard"  # the name of the limit that callers are told

# Blocks of the Russian numbering plan have 10,000 numbers and more. A thousand neighbours, seven digits after +7, is
# what a pump walks through, and what thirty honest people an hour never are.
_RANGE_LENGTH = len("+7") + 7


def range_of(phone: Phone) -> str:
    """Return the range of a phone: the thousand numbers that share ``+7`` and seven digits. It names no person."""
    return phone.e164[:_RANGE_LENGTH]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardRules:
    """When a conversion is bad, and for how long a range is then blocked.

    A call counts once it is older than ``maturity``, by default the life of a code. Before, nobody could know whether
    it would be answered: judged at once, the first twenty people who answer an advertisement would look like fraud,
    for none of them has typed a code yet. What comes in meanwhile is for the limits to hold.

    The first block is ``first_block`` long and each further one twice the one before, up to ``longest_block``; how
    many there were is forgotten ``memory`` after the last one ended. A block uses the calls that led to it up: after
    it, the range starts afresh.

    ``allowed_prefixes`` (of phones or ranges) are neither blocked nor counted.
    """

    enabled: bool = True
    min_calls: int = 20
    min_conversion: float = 0.10
    window: timedelta = timedelta(hours=1)
    maturity: timedelta = timedelta(minutes=5)
    first_block: timedelta = timedelta(hours=1)
    longest_block: timedelta = timedelta(hours=12)
    memory: timedelta = timedelta(days=1)
    allowed_prefixes: tuple[str, ...] = ()

    def watches(self, phone: Phone) -> bool:
        """Return whether calls to a phone are counted and may be blocked."""
        return self.enabled and not phone.e164.startswith(self.allowed_prefixes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was judged: calls old enough to count, and verifications that succeeded."""

    calls: int
    successes: int

    @property
    def conversion(self) -> float:
        """The share of calls that ended in a verified code."""
        return self.successes / self.calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A range that is not called; ``level`` is 1 for its first block, 2 for the next, and so on."""

    range: str
    since: datetime
    until: datetime
    level: int
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A client whose conversion was bad at ``since``; it will not be reported anew before ``until``."""

    client: str
    since: datetime
    until: datetime
    evidence: Evidence


class FraudGuard(Protocol):
    """Watches the conversion. Switched off it admits everything and knows of nothing. All raise StoreUnavailable."""

    async def require_open(self, phone: Phone, client: str) -> None:
        """Return if ``admit`` would; count nothing. Raises RateLimited (``fraud_guard``)."""

    async def admit(self, phone: Phone, client: str) -> None:
        """Count a call that is about to be placed. Raises RateLimited (``fraud_guard``): it is blocked, not counted."""

    async def refund(self, phone: Phone, client: str) -> None:
        """Give an admitted call back that did not happen; once for each."""

    async def succeeded(self, phone: Phone, client: str) -> None:
        """Count a verification that succeeded."""

    async def blocks(self) -> list[Block]:
        """List the ranges that are blocked now, the oldest block first."""

    async def suspects(self) -> list[Suspect]:
        """List the clients that are reported now, the oldest report first."""

    async def lift(self, number_range: str) -> bool:
        """End a block and forget that it was. Tells whether there was one."""
