"""Finds the primary that Redis Sentinels name, and follows it after a failover."""

import asyncio
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import RedisError

from app.store.failures import reason_of
from app.verification.errors import StoreUnavailable

_HOST = r"(?:[^@/?#\[\]:,\s]+|\[[0-9a-fA-F:.]+\])(?::[0-9]+)?"
SENTINEL_URL = re.compile(
    r"(?P<scheme>rediss?)\+sentinel://(?P<user>[^@/?#\[\]\s]*@)?"
    rf"(?P<hosts>{_HOST}(?:,{_HOST})*)/(?P<name>[A-Za-z0-9._-]+)(?P<database>/[0-9]*)?(?P<options>\?[^#@\s]*)?"
)
_PORT = 26379
_ASKED_EVERY = timedelta(seconds=1)


class PrimaryPool(SentinelConnectionPool):
    """Connections to the primary that the Sentinels of a URL name, given as a match of ``SENTINEL_URL``.

    All Sentinels are asked at once, in a quarter of ``timeout`` (seconds): one that is down delays little. As among
    themselves, the newest configuration counts (``config-epoch``), so one that missed a failover does no harm.
    """

    def __init__(self, url: re.Match[str], *, timeout: float, **options: Any) -> None:  # noqa: ANN401 - of the library
        parts = url.groupdict(default="")
        options |= parse_url(f"{parts['scheme']}://{parts['user']}{parts['database']}{parts['options']}")
        own = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        hosts = {host: urlsplit(f"//{host}") for host in parts["hosts"].split(",")}
        self.sentinels: Mapping[str, Redis] = {
            host: Redis.from_pool(
                ConnectionPool(**{**options, **own, "host": at.hostname, "port": at.port or _PORT, "db": 0})
            )
            for host, at in hosts.items()
        }
        self._node_options = dict(options)
        self._answer_within = timeout / 4
        is_tls = options.pop("connection_class", None) is SSLConnection
        super().__init__(parts["name"], None, ssl=is_tls, **options)  # type: ignore[no-untyped-call] # the library's own

    async def get_master_address(self) -> tuple[str, int]:
        """Return the address of the primary. If it is another than before, all connections are closed."""
        answers = await asyncio.gather(*map(self._ask, self.sentinels.values()), return_exceptions=True)
        named = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not named:
            raise next(answer for answer in answers if isinstance(answer, BaseException))
        earlier, (_, self.master_address) = self.master_address, max(named)
        if earlier != self.master_address:
            connections = [*self._available_connections, *self._in_use_connections]
            await asyncio.gather(*(one.disconnect(nowait=True) for one in connections), return_exceptions=True)
        return self.master_address

    async def _ask(self, sentinel: Redis) -> tuple[int, tuple[str, int]]:
        """Return the epoch of a Sentinel's configuration, and the primary that it names."""
        async with asyncio.timeout(self._answer_within):
            # The state alone has the old primary until a failover is over.
            (host, port), state = await ask_sentinel(sentinel, self.service_name, "GET-MASTER-ADDR-BY-NAME", "MASTER")
        return state["config-epoch"], (host.decode(), port)

    async def step(self) -> timedelta:
        """Ask for the primary, so that no idle connection to an earlier one is used. Raises StoreUnavailable."""
        try:
            await self.get_master_address()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(reason_of(error)) from error
        return _ASKED_EVERY

    def open_node(self, host: str, port: int) -> Redis:
        """Open a client of one node, as this pool connects to the primary."""
        return Redis.from_pool(ConnectionPool(**self._node_options, host=host, port=port))

    async def aclose(self) -> None:
        """Close all connections, to the Sentinels too."""
        await super().aclose()
        await asyncio.gather(*(sentinel.aclose() for sentinel in self.sentinels.values()))


async def ask_sentinel(sentinel: Redis, name: str, *commands: str) -> list[Any]:
    """Return the replies to commands about the primary of that name, in one round trip."""
    pipeline = sentinel.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(f"SENTINEL {command}", name)
    return await pipeline.execute()
