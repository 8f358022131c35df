"""Webhook events in Redis as the scripts that change a verification write them, for tests of their delivery."""

import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import count

from redis.asyncio import Redis

from app.store import webhooks
from tests.keys import stored

DUE, SWEPT, WAITING, DEAD, DEAD_EVENTS = map(
    stored, (webhooks.DUE, webhooks.SWEPT, webhooks.WAITING, webhooks.DEAD, webhooks.DEAD_EVENTS)
)

_KEPT = timedelta(days=3)
_REST = "1b22c33d44e55f667788"
BUCKET = "0a1"
VERIFICATION_ID = f"vrf_{BUCKET}{_REST}"
_FIELDS = {
    "type": "verification.created",
    "client": "shop",
    "purpose": "login",
    "channel": "voice",
    "phone": "79001234567",
    "status": "pending",
    "call": "initiated",
    "at": "1769850000123",
}
_numbers = count(1)


def outbox_key(bucket: str) -> str:
    return stored(webhooks.outbox_key(bucket))


def retries_key(bucket: str) -> str:
    return stored(webhooks.retries_key(bucket))


def now_ms() -> int:
    return int(time.time() * 1000)


async def add_events(
    redis: Redis, number: int = 1, *, buckets: Sequence[str] = (BUCKET,), due_ago: int = 0, **fields: str
) -> list[str]:
    """Add events, due for so many milliseconds, in turn to ``buckets``; return the ids of the events."""
    due = now_ms() - due_ago
    ids = []
    for place in range(number):
        bucket = buckets[place % len(buckets)]
        entry = f"{_REST}-{next(_numbers)}"
        await redis.zadd(outbox_key(bucket), {"|".join([entry, *{**_FIELDS, **fields}.values()]): due})
        await redis.pexpire(outbox_key(bucket), _KEPT)
        ids.append(f"msg_{bucket}{entry}")
    await make_due(redis, *buckets, due=due)
    return ids


async def add_expiries(
    redis: Redis, number: int = 1, *, bucket: str = BUCKET, expired_ago: int = 1_000, expired_at: int | None = None
) -> None:
    """Schedule the events of verifications that expire, or have expired so many milliseconds ago, or at a moment."""
    due = (expired_at or now_ms() - expired_ago) + 1
    for place in range(number):
        event = f"{place:020x}-expired|verification.expired|shop|login|voice|79001234567|expired||"
        await redis.zadd(outbox_key(bucket), {event: due})
    await redis.pexpire(outbox_key(bucket), _KEPT)
    await make_due(redis, bucket, due=due)


async def make_due(redis: Redis, *buckets: str, due: int = 0) -> None:
    """Write to the index when buckets are due."""
    await redis.zadd(DUE, dict.fromkeys(buckets, due))
    await redis.pexpire(DUE, _KEPT)


async def sizes(redis: Redis) -> tuple[int, int, int, int]:
    """Return the numbers of events in outboxes, taken or waiting for a retry, and dead, and of stored dead letters."""
    new = [await redis.zcard(key) for key in await redis.keys(outbox_key("*"))]
    taken = [await redis.zcard(key) for key in await redis.keys(retries_key("*"))]
    return sum(new), sum(taken), await redis.zcard(DEAD), await redis.hlen(DEAD_EVENTS)
