"""Connects to Redis, with time-outs and retries of our own, not the library's."""

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.store.sentinel import SENTINEL_URL, PrimaryPool


def connect(url: str, *, timeout: float) -> Redis:
    """Open a client for a ``redis://``, ``rediss://`` or ``unix://`` URL; no connection is made yet.

    ``redis+sentinel://`` and ``rediss+sentinel://`` connect to the primary that the Sentinels name.

    The library's default is to repeat a command up to ten times when its reply is lost. A script that counts would
    count again, so nothing is repeated here: ``timeout`` (seconds) covers connecting and reading alike.
    """
    options: dict[str, Any] = {
        "socket_connect_timeout": timeout,
        "socket_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        # RESP3 switches the library's maintenance notifications on, and with them its check of pooled connections off:
        # one that Redis closed was handed out again (redis-py 8.1, issue 4252).
        "protocol": 2,
        "client_name": "plusofon-verify",
    }
    if sentinels := SENTINEL_URL.fullmatch(url):
        return Redis.from_pool(PrimaryPool(sentinels, timeout=timeout, **options))
    return Redis.from_url(url, **options)
