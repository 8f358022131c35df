"""Tells listeners which verifications change, over one pub/sub connection that all of a process share."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.backoff import EqualJitterBackoff

from app.verification.event_stream import TooManyListeners

log = logging.getLogger(__name__)

CHANNEL = "pv:changes"  # the scripts that change a verification publish its id here

_RETRY_AFTER = 10  # seconds; listeners come and go with the minutes that a verification lives
_CANCEL_AGAIN_AFTER = 0.05  # seconds
_BACKOFF = EqualJitterBackoff(base=0.1, cap=5)


class ChangeFeed:
    """The Feed of ``app/verification/event_stream.py``."""

    __slots__ = ("_news",)

    def __init__(self) -> None:
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Tell the listener that there may be news."""
        self._news.set()

    async def changed(self, seconds: float) -> bool:
        """Wait for news, at most so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True


class RedisChanges:
    """The Changes of ``app/verification/event_stream.py``, on Redis.

    At most ``listeners`` listen at once, ``listeners_of_client`` of them for the same client, and ``listeners_of_one``
    to the same verification. The connection is there as long as anybody listens. When it is lost another one is made,
    and everybody is woken: what was published meanwhile is lost. One on which nothing came for ``quiet`` seconds is
    asked whether it lives.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        listeners: int = 1000,
        listeners_of_client: int = 1000,
        listeners_of_one: int = 10,
        quiet: float = 5,
    ) -> None:
        self._redis = redis
        self._places = listeners
        self._places_of_client = listeners_of_client
        self._places_of_one = listeners_of_one
        self._quiet = quiet
        self._clients = Counter[str]()
        self._feeds: dict[str, set[ChangeFeed]] = {}
        self._hearing: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def listen(self, verification_id: str, *, client: str) -> AsyncIterator[ChangeFeed]:
        """Listen to one verification."""
        feed = self._admit(verification_id, client)
        try:
            yield feed
        finally:
            await self._dismiss(verification_id, client, feed)

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return self._clients.total()

    async def aclose(self) -> None:
        """Close the connection; who still listens hears no more."""
        hearing, self._hearing = self._hearing, None
        while hearing and not hearing.done():
            hearing.cancel()  # more than once: while it connects, the library may swallow a cancellation
            await asyncio.wait({hearing}, timeout=_CANCEL_AGAIN_AFTER)

    def _admit(self, verification_id: str, client: str) -> ChangeFeed:
        of_one = self._feeds.get(verification_id, set())
        if (
            self.listeners >= self._places
            or self._clients[client] >= self._places_of_client
            or len(of_one) >= self._places_of_one
        ):
            raise TooManyListeners(retry_after=_RETRY_AFTER)
        feed = ChangeFeed()
        self._clients[client] += 1
        self._feeds.setdefault(verification_id, of_one).add(feed)
        if self._hearing is None:
            self._hearing = asyncio.create_task(self._hear())
        return feed

    async def _dismiss(self, verification_id: str, client: str, feed: ChangeFeed) -> None:
        self._clients[client] -= 1
        self._feeds[verification_id].remove(feed)
        if not self._feeds[verification_id]:
            del self._feeds[verification_id]
        if not self._feeds:
            await self.aclose()

    async def _hear(self) -> None:
        """Wake listeners until nobody listens; connect again whenever the connection is lost."""
        failures = 0
        while self._hearing is asyncio.current_task():
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(CHANNEL)
                    async for message in self._messages(pubsub):
                        failures = 0
                        self._wake_for(message)
                        if self._hearing is not asyncio.current_task():
                            return
            except Exception as error:  # noqa: BLE001 - whatever it is, listeners need another connection
                failures += 1
                log.warning("changes.connection_lost", extra={"error": repr(error), "failures": failures})
            await asyncio.sleep(_BACKOFF.compute(failures))

    async def _messages(self, pubsub: PubSub) -> AsyncIterator[dict[str, object]]:
        """Yield what comes. Ends when nothing does, not even the answer to a ping: such a connection is dead."""
        asked = False
        while True:
            message = await pubsub.get_message(timeout=self._quiet)
            if message:
                asked = False
                yield message
            elif asked:
                log.warning("changes.connection_dead")
                return
            else:
                asked = True
                await pubsub.ping()

    def _wake_for(self, message: dict[str, object]) -> None:
        data = message["data"]
        if message["type"] == "subscribe":
            _wake(feed for feeds in self._feeds.values() for feed in feeds)
        elif message["type"] == "message" and isinstance(data, bytes):
            _wake(self._feeds.get(data.decode(errors="replace"), ()))


def _wake(feeds: Iterable[ChangeFeed]) -> None:
    for feed in feeds:
        feed.wake()
