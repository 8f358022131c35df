"""Delivers events for as long as the service runs: takes them from the outbox, sends them, tries again, gives up."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import timedelta

from app.verification.errors import StoreUnavailable
from app.verification.webhooks import Delivery, Outbox
from app.webhooks.endpoint import WebhookEndpoint
from app.webhooks.lanes import LaneFull, make_lanes
from app.webhooks.sender import Attempt, Outcome, WebhookSender

log = logging.getLogger(__name__)

# The pauses after each failed attempt: as in the specification's example, ended within a day, jitter included.
SCHEDULE = tuple(
    timedelta(seconds=pause) for pause in (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600)
)  # 17 h 35 min
JITTER = 0.25  # a pause is up to this much longer, so that what failed together does not come back together

_POLL = 0.25  # seconds between looks at the outbox: one script each
_MOST_AT_ONCE = 256  # bounds how long the script that gives events out holds Redis up
_LONGEST_BACKOFF = 10.0  # seconds between looks at a Redis that is down
_SETTLE_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # within the time after which another worker would take an event over

Step = Callable[[], Awaitable[None]]


class WebhookDeliverer:
    """Delivers events to ``endpoints``, which are by client. Any number of workers may share an outbox.

    At most ``held`` events are in memory at once, of which ``in_flight`` are being sent, and ``in_flight_per_endpoint``
    to one URL. None waits there for longer than ``patience`` (seconds): then others have a turn first. When ``run`` is
    cancelled, those held have ``grace`` seconds to be finished; what is left then, another worker takes over.
    """

    def __init__(
        self,
        outbox: Outbox,
        endpoints: Mapping[str, WebhookEndpoint],
        *,
        sender: WebhookSender,
        schedule: tuple[timedelta, ...] = SCHEDULE,
        held: int = 1024,
        in_flight: int = 256,
        in_flight_per_endpoint: int = 8,
        poll: float = _POLL,
        patience: float = 10.0,
        grace: float = 3.0,
    ) -> None:
        self._outbox = outbox
        self._endpoints = endpoints
        self._sender = sender
        self._schedule = schedule
        self._most = held
        self._lanes = make_lanes(
            [endpoint.url for endpoint in endpoints.values()],
            held=held,
            in_flight=in_flight,
            in_flight_per_endpoint=in_flight_per_endpoint,
            patience=patience,
        )
        self._poll = poll
        self._grace = grace
        self._held: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Deliver until cancelled. A Redis that goes away is waited for."""
        async with self._sender:
            try:
                await self._deliver_all()
            finally:
                await self._finish()

    async def _deliver_all(self) -> None:
        backoff = self._poll
        while True:
            try:
                pause = await self._fill()
                backoff = self._poll
            except StoreUnavailable:
                backoff = min(_LONGEST_BACKOFF, backoff * 2)
                pause = backoff * _spread(0.75)
            except Exception:
                log.exception("webhooks.failed")  # a bug, but events have to go out all the same
                pause = 1.0
            await asyncio.sleep(pause)

    async def _fill(self) -> float:
        """Take as many events as there is room for; tell for how many seconds there is nothing more to do."""
        room = self._most - len(self._held)
        if not room:
            await asyncio.wait(self._held, return_when=asyncio.FIRST_COMPLETED)
            return 0
        wanted = min(room, _MOST_AT_ONCE)
        taken = await self._outbox.take(wanted)
        for delivery in taken:
            task = asyncio.create_task(self._handle(delivery))
            self._held.add(task)
            task.add_done_callback(self._held.discard)
        return 0 if len(taken) == wanted else self._poll

    async def _handle(self, delivery: Delivery) -> None:
        """See one event to wherever it is to be next."""
        try:
            step = await self._deliver(delivery)
        except Exception:
            log.exception("webhooks.failed", extra=_facts(delivery))
            step = self._failed(delivery, Attempt(Outcome.UNREACHABLE, "failed inside the service"))
        await self._settle(delivery, step)

    async def _settle(self, delivery: Delivery, step: Step) -> None:
        """Write down what came of it; a Redis that goes away meanwhile may come back in time."""
        for pause in (0, *_SETTLE_PAUSES):
            await asyncio.sleep(pause)
            with suppress(StoreUnavailable):
                await step()
                return
        log.warning("webhooks.not_settled", extra=_facts(delivery))  # it is taken over later, and sent once more

    async def _deliver(self, delivery: Delivery) -> Step:
        """Make an attempt; return what then has to be written down, which may be done twice without harm."""
        endpoint = self._endpoints.get(delivery.event.client)
        if endpoint is None:  # not dropped: workers with newer settings may know it
            return self._failed(delivery, Attempt(Outcome.REJECTED, "the client has no endpoint"))
        if not endpoint.wants(delivery.event):
            return lambda: self._outbox.done(delivery)
        try:
            async with self._lanes[endpoint.url].slot():
                attempt = await self._sender.send(endpoint, delivery.event)
        except LaneFull as full:  # others pass meanwhile; this is no failed attempt
            return self._set_aside(delivery, delivery.attempts, delivery.error, full.pause * _spread(0.75))
        if attempt.outcome is Outcome.DELIVERED:
            return lambda: self._outbox.done(delivery)
        return self._failed(delivery, attempt)

    def _failed(self, delivery: Delivery, attempt: Attempt) -> Step:
        """Have it tried again after a pause, or give it up."""
        attempts = delivery.attempts + 1
        log.info(
            "webhooks.attempt_failed", extra={**_facts(delivery), "attempt": attempts, "outcome": attempt.outcome.value}
        )
        pause = None
        if attempt.outcome is not Outcome.GONE and attempts <= len(self._schedule):
            pause = self._schedule[attempts - 1] * _spread(1)
        return self._set_aside(delivery, attempts, attempt.error, pause)

    def _set_aside(self, delivery: Delivery, attempts: int, error: str, pause: timedelta | None) -> Step:
        async def step() -> None:
            again = await self._outbox.set_aside(delivery, attempts=attempts, error=error, pause=pause)
            if not again:
                log.warning("webhooks.given_up", extra={**_facts(delivery), "attempts": attempts, "error": error})

        return step

    async def _finish(self) -> None:
        """Let what is held be finished, and leave the rest to other workers."""
        if self._held:
            try:
                await asyncio.wait(self._held, timeout=self._grace)
            finally:
                left = list(self._held)
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)


def _facts(delivery: Delivery) -> dict[str, str]:
    event = delivery.event
    return {"event_id": event.id, "event_type": event.type, "client": event.client}


def _spread(least: float) -> float:
    """Draw a factor between ``least`` and 1 + JITTER."""
    return random.uniform(least, 1 + JITTER)  # noqa: S311 - no secret
