"""The fraud guard: detects artificially inflated traffic (traffic pumping) by its low conversion.

Fraudsters have numbers of their own called and never type a code. So the conversion, the share of calls that end in a
verified code, is measured for each range of a thousand numbers and for each client. A range with a low conversion is
blocked. A client is only reported, since a block would refuse all its honest users.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from app.verification.phone import Phone

GUARD_LIMIT = "fraud_guard"  # the name of the limit in errors

# Blocks of the Russian numbering plan have 10,000 numbers and more. Traffic pumping uses a thousand neighbours (seven
# digits after +7), which thirty honest people an hour never are.
_RANGE_LENGTH = len("+7") + 7


def range_of(phone: Phone) -> str:
    """Return the range of a phone: ``+7`` and seven digits, a thousand numbers, so it identifies no person."""
    return phone.e164[:_RANGE_LENGTH]


class GuardAction(StrEnum):
    """What the guard does with a range or a client of a low conversion, beside the limit on its calls."""

    BLOCK = "block"
    REPORT = "report"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardRules:
    """When a conversion is low, and for how long a range is then blocked.

    A conversion below ``min_conversion`` over ``window`` is low, from ``min_calls`` calls on. A call counts once it is
    older than ``maturity``, the lifetime of a code: earlier, the first twenty people who answer an advertisement would
    look like fraud, for none of them has typed a code yet. Until then only the limits protect.

    The first block lasts ``first_block`` and each further one twice as long, up to ``longest_block``; the count of
    blocks is reset ``memory`` after the last one. After a block the calls before it do not count any more.

    ``allowed_prefixes`` (of phones or ranges) are neither blocked nor counted.
    """

    enabled: bool
    min_calls: int
    min_conversion: float
    allowed_prefixes: tuple[str, ...]
    window: timedelta = timedelta(hours=1)
    maturity: timedelta = timedelta(minutes=5)
    first_block: timedelta = timedelta(hours=1)
    longest_block: timedelta = timedelta(hours=12)
    memory: timedelta = timedelta(days=1)

    def watches(self, phone: Phone) -> bool:
        """Return whether calls to a phone are counted and may be blocked."""
        return self.enabled and not phone.e164.startswith(self.allowed_prefixes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A blocked range; ``level`` is 1 for its first block, 2 for the next, and so on.

    ``calls`` are those old enough to count, ``successes`` the verifications that succeeded.
    """

    range: str
    since: datetime
    until: datetime
    level: int
    calls: int
    successes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A client whose conversion was low at ``since``; it is not reported again before ``until``."""

    client: str
    since: datetime
    until: datetime
    calls: int
    successes: int


class FraudGuard(Protocol):
    """Knows the conversions of the calls that a ``RateLimiter`` counts, which also refuses those to a blocked range.

    Disabled, it lists nothing. All methods raise StoreUnavailable.
    """

    def succeeded(self, phone: Phone, client: str) -> None:
        """Count a verification that succeeded, within a second; raise nothing. Those of a killed process are lost."""

    async def blocks(self) -> list[Block]:
        """Return the ranges that are blocked now, the oldest block first."""

    async def suspects(self) -> list[Suspect]:
        """Return the clients that are reported now, the oldest report first."""

    async def lift(self, number_range: str) -> bool:
        """End a block and reset its level. Return False if there was none."""
