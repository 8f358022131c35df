"""Finds the nodes of a Redis Cluster, and which of them serves which slot."""

import asyncio
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from app.store.failures import reason_of
from app.verification.errors import StoreUnavailable

_HOST = r"(?:[^@/?#\[\]:,\s]+|\[[0-9a-fA-F:.]+\])(?::[0-9]+)?"
CLUSTER_URL = re.compile(
    rf"(?P<scheme>rediss?)\+cluster://(?P<user>[^@/?#\[\]\s]*@)?(?P<hosts>{_HOST}(?:,{_HOST})*)(?P<options>\?[^#@\s]*)?"
)
SLOTS = 16384
_PORT = 6379
_ASKED_AT_ONCE = 3
_ASKED_EVERY = timedelta(seconds=1)
_ASKED_AGAIN_AFTER = (0.05, 0.15)  # seconds: a random pause between two questions


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What a node says of its cluster: whether it works, its epoch, and the nodes by address (``host:port``).

    ``owners`` has the primary of each slot, if there is one; ``replicas`` those of each primary. Of two different
    answers that with the higher epoch is newer.
    """

    is_ok: bool = False
    epoch: int = -1
    owners: Sequence[str | None] = field(default=(None,) * SLOTS)
    replicas: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def nodes(self) -> Sequence[str]:
        """The primaries, then the replicas."""
        return [*self.replicas, *chain.from_iterable(self.replicas.values())]


class Cluster:
    """The nodes of the Redis Cluster of a URL, given as a match of ``CLUSTER_URL``.

    Three of the known nodes, which at first are those of the URL, are asked at once for the topology, in a quarter of
    ``timeout`` (seconds), and if none of them answers, three others. So a node that is down delays little, and of a
    node that missed a failover the others know more. Who asks while a question is under way gets its answer; after it
    there is a short, random pause.
    """

    def __init__(self, url: re.Match[str], *, timeout: float, **options: Any) -> None:  # noqa: ANN401 - of the library
        parts = url.groupdict(default="")
        self._options: dict[str, Any] = options | parse_url(f"{parts['scheme']}://{parts['user']}{parts['options']}")
        if self._options.keys() & {"db", "host", "port"}:
            raise ValueError("a cluster has no databases, and its hosts come before the options")
        self._answer_within = timeout / 4
        self.topology = Topology()
        self._seeds = [_with_port(host) for host in parts["hosts"].split(",")]
        self.clients = {address: self._open(address) for address in self._seeds}
        self._question: asyncio.Task[None] | None = None
        self._ask_after = 0.0

    def client(self, address: str) -> Redis:
        """Return the client of one node."""
        if address not in self.clients:
            self.clients[address] = self._open(address)
        return self.clients[address]

    async def primaries(self) -> Mapping[str, Redis]:
        """Return the clients of the primaries, as they are now, by address. Raises as ``refresh`` does."""
        await self.refresh()
        return {address: self.client(address) for address in self.topology.replicas}

    def _open(self, address: str) -> Redis:
        host, _, port = address.rpartition(":")
        return Redis.from_pool(ConnectionPool(**{**self._options, "host": host.strip("[]"), "port": int(port)}))

    async def refresh(self) -> None:
        """Learn the topology, as it is now or will be in a moment. Raise the error of the last node if none answers."""
        await asyncio.shield(self.refresh_soon())

    def refresh_soon(self) -> asyncio.Task[None]:
        """Learn the topology in the background."""
        if self._question is None or self._question.done():
            self._question = asyncio.get_running_loop().create_task(self._learn())
            self._question.add_done_callback(lambda task: task.cancelled() or task.exception())  # may be nobody's
        return self._question

    async def step(self) -> timedelta:
        """Learn the topology, so that nothing is sent to an earlier primary. Raises StoreUnavailable."""
        try:
            await self.refresh()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(reason_of(error)) from error
        return _ASKED_EVERY

    async def _learn(self) -> None:
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(self._ask_after - clock())
        try:
            self.topology = await self._ask_some()
        finally:
            self._ask_after = clock() + random.uniform(*_ASKED_AGAIN_AFTER)  # noqa: S311 - not a secret
        for address in self.clients.keys() - {*self._seeds, *self.topology.nodes}:
            await self.clients.pop(address).aclose()

    async def _ask_some(self) -> Topology:
        addresses = random.sample([*self.clients], len(self.clients))
        while True:
            asked, addresses = addresses[:_ASKED_AT_ONCE], addresses[_ASKED_AT_ONCE:]
            answers = await asyncio.gather(*map(self.ask, asked), return_exceptions=True)
            if known := [answer for answer in answers if isinstance(answer, Topology)]:
                return max(known, key=lambda topology: (topology.is_ok, topology.epoch))
            if not addresses:
                raise next(answer for answer in answers if isinstance(answer, BaseException))

    async def ask(self, address: str) -> Topology:
        """Return the topology as one node sees it."""
        pipeline = self.client(address).pipeline(transaction=False)
        pipeline.execute_command("CLUSTER INFO")
        pipeline.execute_command("CLUSTER SLOTS")
        async with asyncio.timeout(self._answer_within):
            info, ranges = await pipeline.execute()
        owners: list[str | None] = [None] * SLOTS
        replicas: dict[str, list[str]] = {}
        for first, last, *nodes in ranges:
            primary, *others = (_address(node, asked=address) for node in nodes)
            owners[first : last + 1] = [primary] * (last + 1 - first)
            replicas[primary] = others
        is_ok, epoch = info["cluster_state"] == "ok", int(info["cluster_current_epoch"])
        return Topology(is_ok=is_ok, epoch=epoch, owners=owners, replicas=replicas)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._question:
            self._question.cancel()
            await asyncio.wait({self._question})  # until then it may open connections
        await asyncio.gather(*(client.aclose() for client in self.clients.values()))


def _with_port(host: str) -> str:
    return host if re.search(r":[0-9]+$", host) else f"{host}:{_PORT}"


def _address(node: Sequence[Any], *, asked: str) -> str:
    """Return the address of a node in a reply; a node may not know its own host, which is the one that was asked."""
    host = (node[0] or b"").decode()
    if host in {"", "?"}:
        host = asked.rpartition(":")[0]
    return f"{host}:{node[1]}"
