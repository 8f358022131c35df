"""Converts times to and from whole milliseconds of Redis' clock."""

from datetime import UTC, datetime, timedelta
from math import ceil

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def ms(duration: timedelta) -> int:
    """Return a duration in milliseconds."""
    return duration // _MS


def to_ms(moment: datetime) -> int:
    """Return a moment in milliseconds since 1970."""
    return ms(moment - _EPOCH)


def from_ms(moment: str | bytes | int) -> datetime:
    """Return the moment that is so many milliseconds after 1970."""
    return datetime.fromtimestamp(int(moment) / 1000, UTC)


def seconds(wait: int) -> int:
    """Round milliseconds up to seconds, at least one: a caller who waits that long is not refused again."""
    return max(1, ceil(wait / 1000))
