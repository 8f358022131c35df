"""Wakes listeners when a verification changes, over one pub/sub connection for the whole process."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from contextvars import Context
from itertools import chain
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.backoff import EqualJitterBackoff

from app.store.connection import AnyRedis, nodes_of
from app.store.layout import PREFIX, changes_channel
from app.verification.errors import TooManyListeners

log = logging.getLogger(__name__)

_RETRY_AFTER = 10  # seconds; listeners come and go with the minutes that a verification lives
_CANCEL_AGAIN_AFTER = 0.05  # seconds
_BACKOFF = EqualJitterBackoff(base=0.1, cap=5)


class RedisChanges:
    """Signals the changes of verifications, from all workers, each to its listeners.

    At most ``listeners`` listen at once, ``listeners_of_client`` of them for the same client, and ``listeners_of_one``
    to the same verification. The connection exists as long as anybody listens. After it was lost all listeners are
    woken, because messages may be lost. After ``quiet`` seconds without a message it is tested by a ping.
    """

    def __init__(
        self,
        redis: AnyRedis,
        *,
        prefix: str = PREFIX,
        listeners: int = 1000,
        listeners_of_client: int = 1000,
        listeners_of_one: int = 10,
        quiet: float = 5,
    ) -> None:
        self._redis = redis
        self._channel = changes_channel(prefix)
        self._places = listeners
        self._places_of_client = listeners_of_client
        self._places_of_one = listeners_of_one
        self._quiet = quiet
        self._clients = Counter[str]()
        self._feeds: dict[str, set[asyncio.Event]] = {}
        self._receiver: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def listen(self, verification_id: str, *, client: str) -> AsyncIterator[asyncio.Event]:
        """Listen to one verification, from entering to leaving. Raise TooManyListeners on entering.

        The event that this yields is set by each change; clear it, then read the verification. Changes before the first
        read with ``follow`` are seen by that read, those after it set the event. It may be set without a change
        (messages may have been lost), and a change may not set it (Redis may be away).
        """
        of_one = self._feeds.get(verification_id, set())
        if (
            self.listeners >= self._places
            or self._clients[client] >= self._places_of_client
            or len(of_one) >= self._places_of_one
        ):
            raise TooManyListeners(retry_after=_RETRY_AFTER)
        feed = asyncio.Event()
        self._clients[client] += 1
        self._feeds.setdefault(verification_id, of_one).add(feed)
        if self._receiver is None:
            self._receiver = asyncio.create_task(self._receive(), context=Context())  # of no one request
        try:
            yield feed
        finally:
            self._clients[client] -= 1
            of_one.remove(feed)
            if not of_one:
                del self._feeds[verification_id]
            if not self._feeds:
                await self.aclose()

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return self._clients.total()

    async def aclose(self) -> None:
        """Close the connection; remaining listeners get no more changes."""
        receiver, self._receiver = self._receiver, None
        while receiver and not receiver.done():
            receiver.cancel()  # more than once: while it connects, the library may swallow a cancellation
            await asyncio.wait({receiver}, timeout=_CANCEL_AGAIN_AFTER)

    async def _receive(self) -> None:
        """Wake listeners until there are none; connect again whenever the connection is lost."""
        failures = 0
        while self._receiver is asyncio.current_task():
            try:
                # Of a cluster any primary: each node gets what is published at another.
                node = random.choice(await nodes_of(self._redis))  # noqa: S311 - not a secret
                async with node.pubsub() as pubsub:
                    await pubsub.subscribe(self._channel)
                    async for message in self._messages(pubsub, node):
                        failures = 0
                        self._wake(message)
                        if self._receiver is not asyncio.current_task():
                            return
            except Exception as error:  # noqa: BLE001 - whatever it is, listeners need another connection
                failures += 1
                log.warning("changes.connection_lost", extra={"error": repr(error), "failures": failures})
            await asyncio.sleep(_BACKOFF.compute(failures))

    async def _messages(self, pubsub: PubSub, node: Redis) -> AsyncIterator[dict[str, Any]]:
        """Yield messages until the connection is dead: not even a ping is answered.

        Or until the node is no primary any more: one that is cut off from its cluster answers, and gets no messages.
        """
        is_pinged = False
        while True:
            message = await pubsub.get_message(timeout=self._quiet)
            if message:
                is_pinged = False
                yield message
            elif is_pinged:
                log.warning("changes.connection_dead")
                return
            elif node not in await nodes_of(self._redis):
                log.info("changes.node_left")
                return
            else:
                is_pinged = True
                await pubsub.ping()

    def _wake(self, message: dict[str, Any]) -> None:
        feeds: Iterable[asyncio.Event] = ()
        if message["type"] == "subscribe":
            feeds = chain.from_iterable(self._feeds.values())
        elif message["type"] == "message":
            feeds = self._feeds.get(message["data"].decode(errors="replace"), ())
        for feed in feeds:
            feed.set()
