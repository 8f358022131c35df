"""Webhook events stored in Redis reach a real receiver, even if the receiver fails or a worker is killed."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from standardwebhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.background import Background
from app.sandbox.embedded import EmbeddedServer
from app.sandbox.server import SandboxServer
from app.standard_webhooks import parse_secret
from app.store.connection import connect
from app.store.scripts import ScriptRunner
from app.store.webhooks import RedisOutbox
from app.webhooks.deliverer import JITTER, SCHEDULE, WebhookDeliverer
from app.webhooks.endpoint import WebhookEndpoint
from app.webhooks.sender import WebhookSender
from tests.ageing import age
from tests.waiting import PATIENCE, eventually, timing, until
from tests.webhook_events import add_events, add_expiries, retries_key, sizes

ROOT = Path(__file__).parents[2]
SECRET = "whsec_bm90LWEtcmVhbC1zZWNyZXQtMDEyMzQ1"
OTHER = "whsec_bm90LWEtcmVhbC1zZWNyZXQtNTQzMjEw"
QUICK = tuple(timedelta(milliseconds=pause) for pause in (10, 20))


@dataclass
class Receiver:
    """Records the events, verified by an independent library; ``answers`` holds the next statuses of each path."""

    events: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    timestamps: list[str] = field(default_factory=list)
    answers: dict[str, list[int]] = field(default_factory=dict)
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    now: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)

    async def receive(self, request: Request) -> Response:
        path = request.url.path
        event = Webhook(SECRET).verify(await request.body(), dict(request.headers))
        self.ids.append(request.headers["webhook-id"])
        self.timestamps.append(request.headers["webhook-timestamp"])
        self.now[path] += 1
        self.most[path] = max(self.most[path], self.now[path])
        try:
            if path == "/stall":
                self.stalled.set()
                await self.released.wait()
            await asyncio.sleep(0)
        finally:
            self.now[path] -= 1
        planned = self.answers.get(path, [])
        status = planned.pop(0) if planned else 204
        if status == 204:
            self.events.append(event)
        return Response(status_code=status, headers={"location": "/elsewhere"} if status // 100 == 3 else None)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def url(receiver: Receiver) -> AsyncIterator[str]:
    app = Starlette(routes=[Route("/{path:path}", receiver.receive, methods=["POST"])])
    async with SandboxServer(app) as server:
        yield server.url
        receiver.released.set()


def endpoint(url: str, **options: Any) -> WebhookEndpoint:  # noqa: ANN401 - those of the endpoint
    return WebhookEndpoint(url, (parse_secret(SECRET),), **options)


@asynccontextmanager
async def delivering(
    redis: Redis,
    endpoints: Mapping[str, WebhookEndpoint],
    *,
    seconds: float = 20,  # an attempt that runs out of time is made again, as it should be
    **options: Any,  # noqa: ANN401 - those of the deliverer
) -> AsyncIterator[WebhookDeliverer]:
    outbox = RedisOutbox(ScriptRunner(redis, timeout=20))  # what a lost reply took would wait for its lease to end
    sender = WebhookSender(allow_private=True, timeout=seconds)
    options = {"schedule": QUICK, "poll": timedelta(milliseconds=10), **options}
    background = Background()
    async with WebhookDeliverer(outbox, endpoints, sender=sender, **options) as deliverer:
        background.add("webhooks", deliverer.step)
        async with background:
            yield deliverer
    await outbox.flush()


async def add(redis: Redis, number: int = 1, *, client: str = "shop", kind: str = "verification.verified") -> None:
    facts = {"client": client, "type": kind, "status": "verified", "call": "completed"}
    await add_events(redis, number, buckets=["0a1", "0a2", "fff"], **facts)  # type: ignore[arg-type] # mypy takes the texts for each option


async def wait_until_delivered(redis: Redis, *, dead: int = 0) -> None:
    """Wait until no delivery is pending; ``dead`` is the expected number of dead letters."""
    async with timing() as seconds:
        await eventually(lambda: sizes(redis), lambda found: found == (0, 0, dead, dead))
        assert seconds() < 9  # without waiting for a lease to end


async def test_events_are_delivered_signed_and_then_deleted(redis: Redis, receiver: Receiver, url: str) -> None:
    await add(redis, 20)
    async with delivering(redis, {"shop": endpoint(url)}):
        await until(lambda: len(receiver.events) == 20)
        await wait_until_delivered(redis)

    assert len(set(receiver.ids)) == 20
    assert receiver.events[0]["data"]["phone"] == "+7900•••4567"
    assert receiver.events[0]["timestamp"] == "2026-01-31T09:00:00.123Z"


async def test_during_a_secret_rotation_either_secret_verifies_the_signature(
    redis: Redis, receiver: Receiver, url: str
) -> None:
    await add(redis)
    rotating = WebhookEndpoint(url, (parse_secret(OTHER), parse_secret(SECRET)))
    async with delivering(redis, {"shop": rotating}):
        await until(lambda: receiver.events)


async def test_an_expired_verification_sends_an_event(redis: Redis, receiver: Receiver, url: str) -> None:
    await add_expiries(redis, expired_at=1769850000123)
    async with delivering(redis, {"shop": endpoint(url)}):
        await until(lambda: receiver.events)

    (event,) = receiver.events
    assert (event["type"], event["data"]["status"], event["data"]["call"]) == ("verification.expired", "expired", None)
    assert event["timestamp"] == "2026-01-31T09:00:00.123Z"


@pytest.mark.parametrize("status", [302, 404, 429, 500, 503])
async def test_a_failed_delivery_is_retried_with_the_same_id(
    redis: Redis, receiver: Receiver, url: str, status: int
) -> None:
    receiver.answers["/"] = [status, status]
    await add(redis)
    async with delivering(redis, {"shop": endpoint(f"{url}/")}):
        await until(lambda: receiver.events)
        await wait_until_delivered(redis)

    assert len(receiver.ids) == 3
    assert len(set(receiver.ids)) == 1


async def test_after_the_last_retry_an_event_is_a_dead_letter_and_can_be_resent(
    redis: Redis, receiver: Receiver, url: str
) -> None:
    receiver.answers["/"] = [500] * 3
    await add(redis)
    async with delivering(redis, {"shop": endpoint(f"{url}/")}):
        await wait_until_delivered(redis, dead=1)
        outbox = RedisOutbox(ScriptRunner(redis, timeout=5))
        (letter,) = await outbox.dead_letters()
        assert (letter.event.id, letter.attempts, letter.error) == (receiver.ids[0], 3, "status 500")
        assert (await outbox.gauges())["webhooks_dead"] == 1

        assert await outbox.resend(letter.event.id)
        await until(lambda: receiver.events)
        await wait_until_delivered(redis)
    assert len(set(receiver.ids)) == 1


async def test_a_410_is_not_retried(redis: Redis, receiver: Receiver, url: str) -> None:
    receiver.answers["/"] = [410]
    await add(redis)
    async with delivering(redis, {"shop": endpoint(f"{url}/")}):
        await wait_until_delivered(redis, dead=1)
    assert len(receiver.ids) == 1


async def test_a_timeout_or_a_disconnect_of_the_receiver_is_retried(redis: Redis, receiver: Receiver, url: str) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    rude = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    await add(redis)
    async with delivering(redis, {"shop": endpoint(f"{url}/stall")}, seconds=0.05):
        await wait_until_delivered(redis, dead=1)
    await add(redis, client="bank")
    async with server, delivering(redis, {"bank": endpoint(rude)}):
        await wait_until_delivered(redis, dead=2)
    letters = await RedisOutbox(ScriptRunner(redis, timeout=5)).dead_letters()
    errors = {letter.event.client: letter.error for letter in letters}
    assert errors["shop"] == "no answer within 0.05 s"
    assert errors["bank"] in {"no answer: ClientOSError", "no answer: ServerDisconnectedError"}


async def test_only_subscribed_event_types_are_sent(redis: Redis, receiver: Receiver, url: str) -> None:
    await add(redis, kind="verification.created")
    await add(redis)
    async with delivering(redis, {"shop": endpoint(url, events=frozenset({"verification.verified"}))}):
        await wait_until_delivered(redis)
    assert [event["type"] for event in receiver.events] == ["verification.verified"]


async def test_an_event_of_a_client_unknown_to_an_older_worker_is_not_lost(
    redis: Redis, receiver: Receiver, url: str
) -> None:
    await add(redis)
    async with delivering(redis, {"bank": endpoint(url)}, schedule=(timedelta(seconds=0.05),) * 100):
        await eventually(
            lambda: redis.zrange(retries_key("0a1"), 0, -1),
            lambda events: b"|the client has no endpoint" in b"".join(events),  # type: ignore[arg-type] # without scores
        )
    async with delivering(redis, {"shop": endpoint(url)}):
        await until(lambda: receiver.events)


async def test_several_workers_share_the_events_and_send_each_once(redis: Redis, receiver: Receiver, url: str) -> None:
    await add(redis, 60)
    endpoints = {"shop": endpoint(url)}
    async with delivering(redis, endpoints), delivering(redis, endpoints), delivering(redis, endpoints):
        await until(lambda: len(receiver.ids) >= 60)
        await wait_until_delivered(redis)
    assert len(set(receiver.ids)) == len(receiver.ids) == 60


async def test_a_slow_endpoint_does_not_delay_others(redis: Redis, receiver: Receiver, url: str) -> None:
    await add(redis, 40)
    await add(redis, 10, client="bank")
    endpoints = {"shop": endpoint(f"{url}/stall"), "bank": endpoint(f"{url}/quick")}
    options = {"held": 8, "in_flight_per_endpoint": 2, "grace": 0}
    outbox = RedisOutbox(ScriptRunner(redis, timeout=5))
    async with delivering(redis, endpoints, **options):
        await until(lambda: len(receiver.events) == 10)
        assert receiver.most["/stall"] == 2
        assert receiver.most["/quick"] <= 2
        await eventually(outbox.gauges, lambda gauges: gauges["webhooks_pending"] == 40)
        assert (await outbox.gauges())["webhooks_dead"] == 0


async def test_a_postponed_event_does_not_count_as_a_failed_attempt(redis: Redis, receiver: Receiver, url: str) -> None:
    await add(redis, 50)
    async with delivering(redis, {"shop": endpoint(url)}, held=2, in_flight_per_endpoint=1, schedule=()):
        await until(lambda: len(receiver.events) == 50)
        await wait_until_delivered(redis)


async def test_a_stopping_worker_finishes_its_deliveries_in_flight(redis: Redis, receiver: Receiver, url: str) -> None:
    slow = asyncio.Event()

    async def answer(_: Request) -> Response:
        slow.set()
        await asyncio.sleep(0.1)
        return Response(status_code=204)

    await add(redis)
    async with SandboxServer(Starlette(routes=[Route("/", answer, methods=["POST"])])) as server:
        async with delivering(redis, {"shop": endpoint(f"{server.url}/")}):
            await asyncio.wait_for(slow.wait(), PATIENCE)
        assert await sizes(redis) == (0, 0, 0, 0)


async def test_a_delivery_not_finished_before_shutdown_is_taken_over_by_another_worker(
    redis: Redis, receiver: Receiver, url: str
) -> None:
    await add(redis)
    async with delivering(redis, {"shop": endpoint(f"{url}/stall")}, grace=0):
        await asyncio.wait_for(receiver.stalled.wait(), PATIENCE)
    await age(redis, timedelta(minutes=1))

    async with delivering(redis, {"shop": endpoint(url)}):
        await until(lambda: receiver.events)
        await wait_until_delivered(redis)
    assert len(set(receiver.ids)) == 1


WORKER = """
import asyncio, sys
from app.background import Background
from app.standard_webhooks import parse_secret
from app.store.connection import connect_any
from app.store.webhooks import RedisOutbox
from app.store.scripts import ScriptRunner
from app.webhooks.deliverer import WebhookDeliverer
from app.webhooks.endpoint import WebhookEndpoint
from app.webhooks.sender import WebhookSender
redis_url, url, secret = sys.argv[1:]
async def main():
    outbox = RedisOutbox(ScriptRunner(connect_any(redis_url, timeout=20), timeout=20))
    endpoint = WebhookEndpoint(url, (parse_secret(secret),))
    background = Background()
    async with WebhookDeliverer(outbox, {"shop": endpoint}, sender=WebhookSender(allow_private=True)) as deliverer:
        background.add("webhooks", deliverer.step)
        async with background:
            await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_the_events_of_a_killed_worker_are_delivered_by_another(
    redis: Redis, redis_url: str, receiver: Receiver, url: str
) -> None:
    """The worker is killed between reading an event and acknowledging it."""
    await add(redis)
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, redis_url, f"{url}/stall", SECRET), cwd=ROOT
    )
    await asyncio.wait_for(receiver.stalled.wait(), PATIENCE)
    os.kill(worker.pid, signal.SIGKILL)
    await worker.wait()
    assert await sizes(redis) == (0, 1, 0, 0)
    await age(redis, timedelta(minutes=1))

    async with delivering(redis, {"shop": endpoint(url)}):
        await until(lambda: receiver.events)
        await wait_until_delivered(redis)
    assert len(receiver.ids) == 2
    assert len(set(receiver.ids)) == 1


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


async def test_delivery_continues_after_a_redis_outage_without_a_restart(
    own_server: EmbeddedServer, receiver: Receiver, url: str
) -> None:
    redis = connect(own_server.url, timeout=5)
    async with delivering(redis, {"shop": endpoint(url)}):
        await add(redis)
        await until(lambda: len(receiver.events) == 1)
        os.kill(int((await redis.info("server"))["process_id"]), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while len(receiver.events) < 2:
            assert time.monotonic() < deadline
            with suppress(Exception):
                await add(redis)
            await asyncio.sleep(0.05)
    await redis.aclose()


async def test_delivery_continues_after_redis_was_flushed(redis: Redis, receiver: Receiver, url: str) -> None:
    async with delivering(redis, {"shop": endpoint(url)}):
        for number in range(1, 4):
            await add(redis)
            await until(lambda number=number: len(receiver.events) == number)  # type: ignore[misc] # mypy does not infer the default
            await redis.flushall()


def test_the_retry_schedule_ends_within_a_day() -> None:
    assert timedelta(hours=12) < sum(SCHEDULE, timedelta()) * (1 + JITTER) < timedelta(days=1)
    assert list(SCHEDULE) == sorted(SCHEDULE)


def snippet() -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/webhooks.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/webhooks.md", "exec"), names)  # the code of the document
    return names


async def test_the_documented_receiver_accepts_events(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    names = snippet()
    await add(redis)
    await add(redis)
    await add(redis, client="stranger")
    async with SandboxServer(names["app"]) as server:
        hook = f"{server.url}/hooks/phone"
        endpoints = {"shop": endpoint(hook), "stranger": WebhookEndpoint(hook, (parse_secret(OTHER),))}
        async with delivering(redis, endpoints, schedule=()):
            await wait_until_delivered(redis, dead=1)
    (letter,) = await RedisOutbox(ScriptRunner(redis, timeout=5)).dead_letters()

    assert (letter.event.client, letter.error) == ("stranger", "status 401")
    assert capsys.readouterr().out == "verification.verified vrf_0a11b22c33d44e55f667788\n" * 2
    assert len(names["seen"]) == 2


async def test_the_documented_message_is_what_is_sent(redis: Redis, receiver: Receiver, url: str) -> None:
    shown = re.search(r"^\{\"type\".*\}$", (ROOT / "docs/webhooks.md").read_text(encoding="utf-8"), re.MULTILINE)
    await add(redis)
    async with delivering(redis, {"shop": endpoint(url)}):
        await until(lambda: receiver.events)

    assert shown
    assert receiver.events == [json.loads(shown[0])]


async def test_a_receiver_that_stays_down_keeps_a_bounded_number_of_events(
    redis: Redis, receiver: Receiver, url: str
) -> None:
    """All events are in one bucket, and none is lost: what is not retried is a dead letter."""
    receiver.answers["/down"] = [503] * 1000
    async with delivering(redis, {"shop": endpoint(f"{url}/down")}, schedule=(timedelta(hours=1),)):
        for wave in range(1, 6):
            added = await add_events(redis, 60)
            await until(lambda wave=wave: len(set(receiver.ids)) == 60 * wave)  # type: ignore[misc] # mypy does not infer the default
            assert set(added) <= set(receiver.ids)
    new, retries, dead, _ = await sizes(redis)

    assert new == 0
    assert retries <= 64
    assert retries + dead == 300
