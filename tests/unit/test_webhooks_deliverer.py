"""The webhook delivery loop: failures of the store and the sender, and the retry schedule."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from app.background import Background
from app.verification.errors import StoreUnavailable
from app.verification.webhooks import Delivery, Event
from app.webhooks.deliverer import WebhookDeliverer
from app.webhooks.endpoint import WebhookEndpoint
from app.webhooks.sender import Attempt, Outcome, WebhookSender
from tests.unit.test_webhooks_endpoint import EVENT
from tests.waiting import until

ENDPOINTS = {"shop": WebhookEndpoint("https://shop.example/hook", (b"s" * 24,))}


class FakeOutbox:
    """Hand out one event; each step first raises the errors listed in ``breaks``, one per call."""

    def __init__(self, *, attempts: int = 0) -> None:
        self.waiting = [Delivery(event=EVENT, attempts=attempts)]
        self.breaks: dict[str, list[Exception]] = {}
        self.finished: list[Delivery] = []
        self.aside: list[tuple[int, str, timedelta | None]] = []

    def step(self, name: str) -> None:
        if self.breaks.get(name):
            raise self.breaks[name].pop(0)

    async def take(self, count: int) -> Sequence[Delivery]:
        self.step("take")
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    async def done(self, delivery: Delivery) -> None:
        self.step("done")
        self.finished.append(delivery)

    async def set_aside(self, delivery: Delivery, *, attempts: int, error: str, pause: timedelta | None) -> bool:
        self.step("set_aside")
        self.aside.append((attempts, error, pause))
        return pause is not None


class FakeSender(WebhookSender):
    """Return or raise ``made`` for each delivery attempt."""

    made: Attempt | Exception = Attempt(Outcome.DELIVERED)

    async def send(self, endpoint: WebhookEndpoint, event: Event) -> Attempt:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


@asynccontextmanager
async def running(outbox: FakeOutbox, sender: WebhookSender) -> AsyncIterator[None]:
    background = Background(first_pause=timedelta(milliseconds=10))
    async with WebhookDeliverer(outbox, ENDPOINTS, sender=sender, poll=timedelta(milliseconds=10)) as deliverer:
        background.add("webhooks", deliverer.step)
        async with background:
            yield


@pytest.mark.parametrize("step", ["take", "done"])
async def test_an_event_is_delivered_once_the_store_is_available_again(step: str) -> None:
    outbox = FakeOutbox()
    outbox.breaks[step] = [StoreUnavailable()]

    async with running(outbox, FakeSender()):
        await until(lambda: outbox.finished)


async def test_an_unexpected_exception_in_a_delivery_is_logged_and_the_event_retried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox, sender = FakeOutbox(), FakeSender()
    sender.made = KeyError("a bug")

    async with running(outbox, sender):
        await until(lambda: outbox.aside)

    ((attempts, error, pause),) = outbox.aside
    assert (attempts, error) == (1, "failed inside the service")
    assert pause
    assert "webhooks.failed" in [record.message for record in caplog.records if record.exc_info]


async def test_an_unexpected_exception_in_the_loop_is_logged_and_the_loop_continues(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox = FakeOutbox()
    outbox.breaks["take"] = [KeyError("a bug")]

    async with running(outbox, FakeSender()):
        await until(lambda: outbox.finished)

    assert "background.step_failed" in [record.message for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("attempts", "seconds"), [(0, 5), (1, 300), (2, 1_800), (3, 7_200), (4, 18_000), (5, 36_000), (6, None)]
)
async def test_pauses_between_attempts_grow_until_the_event_is_given_up(attempts: int, seconds: int | None) -> None:
    outbox, sender = FakeOutbox(attempts=attempts), FakeSender()
    sender.made = Attempt(Outcome.REJECTED, "status 500")

    async with running(outbox, sender):
        await until(lambda: outbox.aside)

    ((made, _, pause),) = outbox.aside
    assert made == attempts + 1
    if seconds is None:
        assert pause is None
    else:
        assert pause
        assert seconds <= pause.total_seconds() <= seconds * 1.25


async def test_no_log_line_contains_the_phone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    outbox, sender = FakeOutbox(attempts=6), FakeSender()
    sender.made = Attempt(Outcome.REJECTED, "status 500")

    async with running(outbox, sender):
        await until(lambda: outbox.aside)

    logged = [vars(record) for record in caplog.records if record.name.startswith("app.")]
    assert {line["message"] for line in logged} == {"webhooks.attempt_failed", "webhooks.given_up"}
    assert "9001234567" not in str(logged)
