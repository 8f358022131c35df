"""Clients with which tests send any command to a Redis of any kind."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain
from typing import Any, cast

from redis.asyncio import Redis, RedisCluster

from app.store import connection
from app.store.cluster import CLUSTER_URL, Cluster

_TIMEOUT = 8.0  # seconds, of which each Sentinel has a quarter; a service has less to do than all tests at once


class ClusterCommands(Cluster):
    """The service's client of a cluster, with the library's commands, each on the node that has its key."""

    def __init__(self, url: str) -> None:
        parts = CLUSTER_URL.fullmatch(url)
        assert parts
        super().__init__(parts, timeout=_TIMEOUT, **connection._options(_TIMEOUT))
        self._commands = RedisCluster.from_url(f"redis://{parts['user']}{parts['hosts'].split(',')[0]}", protocol=2)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any command
        return getattr(self._commands, name)

    # The library asks one node, and here all primaries count.

    async def keys(self, pattern: str = "*") -> list[bytes]:
        return [*chain.from_iterable(await self._ask_primaries("keys", pattern))]

    async def dbsize(self) -> int:
        return sum(await self._ask_primaries("dbsize"))

    async def flushall(self) -> None:
        await self._ask_primaries("flushall")

    async def config_set(self, name: str, value: str) -> None:
        await self._ask_primaries("config_set", name, value)

    async def client_list(self, **options: Any) -> list[dict[str, str]]:  # noqa: ANN401 - of the library
        return [*chain.from_iterable(await self._ask_primaries("client_list", **options))]

    async def client_kill_filter(self, **options: Any) -> None:  # noqa: ANN401 - of the library
        await self._ask_primaries("client_kill_filter", **options)

    async def client_pause(self, milliseconds: int, **options: Any) -> None:  # noqa: ANN401 - of the library
        await self._ask_primaries("client_pause", milliseconds, **options)

    async def _ask_primaries(self, method: str, *arguments: Any, **options: Any) -> list[Any]:  # noqa: ANN401 - of any command
        if not self.topology.replicas:
            await self.refresh()  # not each time: it pauses between two questions
        nodes = map(self.client, self.topology.replicas)
        return await asyncio.gather(*(getattr(node, method)(*arguments, **options) for node in nodes))

    async def aclose(self) -> None:
        await self._commands.aclose()
        await super().aclose()


@asynccontextmanager
async def open_commands(url: str) -> AsyncIterator[Redis]:
    """Open a client for the stores that also sends commands; that of a cluster has them by the same names."""
    client = ClusterCommands(url) if CLUSTER_URL.fullmatch(url) else connection.connect(url, timeout=_TIMEOUT)
    try:
        await client.ping()  # connecting takes a while, which a test does not expect of a command
        yield cast(Redis, client)
    finally:
        await client.aclose()


@asynccontextmanager
async def stoppable(redis: Redis) -> AsyncIterator[Callable[[], None]]:
    """Yield a function that stops the processes of all primaries, so that they hang; at the end they go on."""
    pids = [int((await primary.info("server"))["process_id"]) for primary in await connection.nodes_of(redis)]

    def send(sent: signal.Signals) -> None:
        for pid in pids:
            os.kill(pid, sent)

    try:
        yield partial(send, signal.SIGSTOP)
    finally:
        send(signal.SIGCONT)


@asynccontextmanager
async def stopped(redis: Redis) -> AsyncIterator[None]:
    """Stop the processes of all primaries meanwhile, so that they hang."""
    async with stoppable(redis) as stop:
        stop()
        yield


async def flush(url: str) -> None:
    """Delete all keys."""
    async with open_commands(url) as client:
        await client.flushall()
