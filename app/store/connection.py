"""How the service connects to Redis: with time-outs and retries of our own, not the library's."""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def connect(url: str, *, timeout: float) -> Redis:
    """Open a client for a ``redis://``, ``rediss://`` or ``unix://`` URL; no connection is made yet.

    The library's default is to repeat a command up to ten times when its reply is lost. A script that counts would
    count again, so nothing is repeated here: ``timeout`` (seconds) covers connecting and reading alike.
    """
    return Redis.from_url(
        url,
        socket_connect_timeout=timeout,
        socket_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        client_name="plusofon-verify",
    )
