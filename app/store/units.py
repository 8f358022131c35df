"""Time as Redis keeps it: whole milliseconds, of its own clock."""

from datetime import UTC, datetime, timedelta
from math import ceil

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def ms(duration: timedelta) -> int:
    """Write a duration."""
    return duration // timedelta(milliseconds=1)


def to_ms(moment: datetime) -> int:
    """Write a moment."""
    return ms(moment - _EPOCH)


def from_ms(moment: str | bytes | int) -> datetime:
    """Read a moment."""
    return _EPOCH + timedelta(milliseconds=int(moment))


def seconds(wait: int) -> int:
    """Round a wait up: whoever comes back then is not sent away again."""
    return max(1, ceil(wait / 1000))
