"""Clients with which tests send any command to a Redis of any kind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from redis.asyncio import Redis, RedisCluster

from app.store import connection
from app.store.cluster import CLUSTER_URL, Cluster

_TIMEOUT = 1.0


class ClusterCommands(Cluster):
    """The service's client of a cluster, with the library's commands, each on the node that has its key."""

    def __init__(self, url: str) -> None:
        parts = CLUSTER_URL.fullmatch(url)
        assert parts
        super().__init__(parts, timeout=_TIMEOUT, **connection._options(_TIMEOUT))
        self._commands = RedisCluster.from_url(f"redis://{parts['user']}{parts['hosts'].split(',')[0]}", protocol=2)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any command
        return getattr(self._commands, name)

    async def keys(self, pattern: str = "*") -> list[bytes]:
        """List the keys of all nodes: the library asks one."""
        return [key for keys in await self._ask_primaries("KEYS", pattern) for key in keys]

    async def dbsize(self) -> int:
        """Count the keys of all nodes: the library asks one."""
        return sum(await self._ask_primaries("DBSIZE"))

    async def flushall(self) -> None:
        await self._ask_primaries("FLUSHALL")

    async def _ask_primaries(self, *command: str) -> list[Any]:
        if not self.topology.replicas:
            await self.refresh()  # not each time: it pauses between two questions
        nodes = map(self.client, self.topology.replicas)
        return await asyncio.gather(*(node.execute_command(*command) for node in nodes))  # type: ignore[no-untyped-call] # the library's own

    async def aclose(self) -> None:
        await self._commands.aclose()
        await super().aclose()


@asynccontextmanager
async def open_commands(url: str) -> AsyncIterator[Redis]:
    """Open a client for the stores that also sends commands; that of a cluster has them by the same names."""
    client = ClusterCommands(url) if CLUSTER_URL.fullmatch(url) else connection.connect(url, timeout=_TIMEOUT)
    try:
        yield cast(Redis, client)
    finally:
        await client.aclose()


async def flush(url: str) -> None:
    """Delete all keys."""
    async with open_commands(url) as client:
        await client.flushall()
