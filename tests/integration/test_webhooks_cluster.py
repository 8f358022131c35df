"""Webhook events on a real cluster: each is delivered once, also after a node has failed or a slot has moved."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from redis.crc import key_slot

from app.background import Background
from app.store.connection import connect_any
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import DUE, RedisOutbox, outbox_key
from app.verification.channels import Channel
from app.verification.model import CallState, CallStatus
from app.verification.phone import Phone
from app.verification.ports import CallUpdate, NewCall
from app.verification.webhooks import Event
from app.webhooks.deliverer import WebhookDeliverer
from app.webhooks.endpoint import WebhookEndpoint
from app.webhooks.sender import Attempt, Outcome, WebhookSender
from tests.keys import stored
from tests.policies import make_policy
from tests.redis_cluster import Cluster
from tests.starting import start
from tests.waiting import until

POLICY = make_policy()
ENDPOINTS = {"shop": WebhookEndpoint("https://shop.example/hook", (b"s" * 24,))}
PLACED = CallUpdate(state=CallState(CallStatus.INITIATED), ref="ref")


class Recorder(WebhookSender):
    """Accepts every event, and records its id."""

    def __init__(self) -> None:
        super().__init__()
        self.delivered: list[str] = []

    async def send(self, endpoint: WebhookEndpoint, event: Event) -> Attempt:
        self.delivered.append(event.id)
        return Attempt(Outcome.DELIVERED)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture
async def runner(nodes: Cluster) -> AsyncIterator[ScriptRunner]:
    cluster = connect_any(nodes.url, timeout=5)
    runner = ScriptRunner(cluster, timeout=5)
    yield runner
    await runner.aclose()
    await cluster.aclose()


@pytest.fixture
def outbox(runner: ScriptRunner) -> RedisOutbox:
    return RedisOutbox(runner, clients={"shop"})


@pytest.fixture
def store(runner: ScriptRunner, outbox: RedisOutbox) -> RedisVerificationStore:
    return RedisVerificationStore(runner, phone_key=b"k" * 32, outbox=outbox)


@asynccontextmanager
async def delivering(outbox: RedisOutbox) -> AsyncIterator[Recorder]:
    sender, background = Recorder(), Background(longest_pause=timedelta(seconds=1))
    async with WebhookDeliverer(outbox, ENDPOINTS, sender=sender, poll=timedelta(milliseconds=10)) as deliverer:
        background.add("webhooks", deliverer.step)
        async with background:
            yield sender


async def cancel_one(store: RedisVerificationStore, number: int) -> list[str]:
    """Start a verification and cancel it; return the ids of its two events."""
    call = NewCall(
        client="shop",
        phone=Phone(f"+7900{number:07}"),
        purpose="login",
        channel=Channel.VOICE,
        code_digest=b"r" * 32,
        code_length=6,
        checks=5,
    )
    verification = (await start(store, call, POLICY)).verification
    await store.record_call(verification, 1, PLACED)
    await store.cancel("shop", verification.id)
    return [f"msg_{verification.id[4:]}-{version}" for version in (1, 2)]


def slot_of(event_id: str) -> int:
    slot: int = key_slot(stored(outbox_key(event_id[4:7])).encode())
    return slot


async def test_the_events_of_all_nodes_are_delivered_once(store: RedisVerificationStore, outbox: RedisOutbox) -> None:
    async with delivering(outbox) as sender:
        events = [each for pair in await asyncio.gather(*[cancel_one(store, n) for n in range(100)]) for each in pair]
        await until(lambda: len(sender.delivered) >= 200)

    assert sorted(sender.delivered) == sorted(events)
    assert (await outbox.gauges())["webhook_lag_seconds"] < 5


async def test_events_of_other_nodes_wait_while_the_node_of_the_index_is_down(
    nodes: Cluster, store: RedisVerificationStore, outbox: RedisOutbox
) -> None:
    try:
        index = nodes.primary_of(key_slot(stored(DUE).encode()))
        added = [each for n in range(100, 140) for each in await cancel_one(store, n)]
        index_slots = set(nodes.slots_of(index))
        elsewhere = [each for each in added if slot_of(each) not in index_slots]
        index.kill()
        async with delivering(outbox) as sender:
            await until(lambda: set(elsewhere) <= set(sender.delivered))
    finally:
        nodes.mend()

    assert len(elsewhere) > 20
    assert {*sender.delivered} <= {*added}


async def test_events_of_a_slot_that_moves_are_delivered(
    nodes: Cluster, store: RedisVerificationStore, outbox: RedisOutbox
) -> None:
    events = await cancel_one(store, 200)
    slot = slot_of(events[0])
    target = next(node for node in nodes.primaries if node is not nodes.primary_of(slot))
    assert nodes.move_slot(slot, target) >= 3  # the verification, its phone and their events

    async with delivering(outbox) as sender:
        await until(lambda: set(events) <= set(sender.delivered))
