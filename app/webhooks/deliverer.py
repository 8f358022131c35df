"""Delivers events while the service runs: takes them from the outbox, sends them, tries again, gives up."""

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

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

_IN_FLIGHT = 256  # deliveries at once, to all endpoints
_SLOT_TIMEOUT = 10.0  # seconds for which a delivery waits in memory; then others go first
_MOST_AT_ONCE = 256  # bounds how long the script that hands out events holds Redis up
_RECORD_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # within the time after which another worker would take an event over


@dataclass(frozen=True, slots=True)
class _Retry:
    """How to keep an event that was not delivered: until after ``pause``, or as a dead letter without one."""

    attempts: int
    error: str
    pause: timedelta | None


@dataclass(kw_only=True, repr=False, eq=False)
class WebhookDeliverer:
    """Delivers events to ``endpoints``, which are by client. Any number of workers may share an outbox.

    A context manager, in which ``step`` is to be called repeatedly. At most ``held`` events are in memory at once, and
    ``in_flight_per_endpoint`` are sent to one URL. The outbox is polled every ``poll``. On exit the events held have
    ``grace`` seconds to be finished; another worker takes over the rest.
    """

    outbox: Outbox = field(kw_only=False)
    endpoints: Mapping[str, WebhookEndpoint] = field(kw_only=False)
    sender: WebhookSender
    schedule: tuple[timedelta, ...] = SCHEDULE
    held: int = 1024
    in_flight_per_endpoint: int = 8
    poll: timedelta = timedelta(milliseconds=250)
    grace: float = 3.0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._lanes = make_lanes(
            [endpoint.url for endpoint in self.endpoints.values()],
            held=self.held,
            in_flight=_IN_FLIGHT,
            in_flight_per_endpoint=self.in_flight_per_endpoint,
            timeout=_SLOT_TIMEOUT,
        )

    async def __aenter__(self) -> Self:
        await self.sender.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=self.grace)
        finally:
            left = list(self._tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await self.sender.__aexit__()

    async def step(self) -> timedelta:
        """Take as many events as there is room for; return the pause until the next step. Raise StoreUnavailable."""
        wanted = min(self.held - len(self._tasks), _MOST_AT_ONCE)
        taken = await self.outbox.take(wanted)
        if not wanted:
            poll = self.poll.total_seconds()
            await asyncio.wait(self._tasks, timeout=poll, return_when=asyncio.FIRST_COMPLETED)
            return timedelta(0)
        for delivery in taken:
            task = asyncio.create_task(self._handle(delivery))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return timedelta(0) if 2 * len(taken) >= wanted else self.poll  # more may be due

    async def _handle(self, delivery: Delivery) -> None:
        """Deliver one event, and record the outcome; a Redis that goes away meanwhile may come back in time."""
        try:
            retry = await self._deliver(delivery)
        except Exception:
            log.exception("webhooks.failed", extra=_log_fields(delivery))
            retry = self._failed(delivery, Attempt(Outcome.UNREACHABLE, "failed inside the service"))
        for pause in (0, *_RECORD_PAUSES):
            await asyncio.sleep(pause)
            with suppress(StoreUnavailable):
                await self._record(delivery, retry)
                return
        log.warning("webhooks.not_settled", extra=_log_fields(delivery))  # it is taken over later, and sent once more

    async def _deliver(self, delivery: Delivery) -> _Retry | None:
        """Make an attempt; return None if the event was delivered, or is not wanted."""
        endpoint = self.endpoints.get(delivery.event.client)
        if endpoint is None:  # not dropped: workers with newer settings may know it
            return self._failed(delivery, Attempt(Outcome.REJECTED, "the client has no endpoint"))
        if not endpoint.wants(delivery.event):
            return None
        try:
            async with self._lanes[endpoint.url].slot():
                attempt = await self.sender.send(endpoint, delivery.event)
        except LaneFull as full:  # not a failed attempt
            return _Retry(delivery.attempts, delivery.error, full.pause * _jitter(0.75))
        return None if attempt.outcome is Outcome.DELIVERED else self._failed(delivery, attempt)

    def _failed(self, delivery: Delivery, attempt: Attempt) -> _Retry:
        """Have it tried again after a pause, or give it up."""
        attempts = delivery.attempts + 1
        fields = {"attempt": attempts, "outcome": attempt.outcome.value}
        log.info("webhooks.attempt_failed", extra=_log_fields(delivery) | fields)
        pause = None
        if attempt.outcome is not Outcome.GONE and attempts <= len(self.schedule):
            pause = self.schedule[attempts - 1] * _jitter(1)
        return _Retry(attempts, attempt.error, pause)

    async def _record(self, delivery: Delivery, retry: _Retry | None) -> None:
        """Record an outcome; may be done twice without harm."""
        if retry is None:
            await self.outbox.done(delivery)
        elif not await self.outbox.set_aside(delivery, attempts=retry.attempts, error=retry.error, pause=retry.pause):
            fields = {"attempts": retry.attempts, "error": retry.error}
            log.warning("webhooks.given_up", extra=_log_fields(delivery) | fields)


def _log_fields(delivery: Delivery) -> dict[str, object]:
    event = delivery.event
    return {
        "event_id": event.id,
        "event_type": event.type,
        "client": event.client,
        "verification_id": event.verification_id,
        "phone": event.phone.masked,
    }


def _jitter(least: float) -> float:
    """Return a random factor between ``least`` and 1 + JITTER."""
    return random.uniform(least, 1 + JITTER)  # noqa: S311 - no secret
