"""The scripts run on Redis Cluster: all keys that one script uses are in one slot."""

import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import fields
from datetime import timedelta

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.sandbox import embedded
from app.store.connection import connect
from app.store.erasure import RedisPhoneEraser
from app.store.fraud_guard import RedisFraudGuard
from app.store.idempotency import RedisIdempotency
from app.store.limits import RedisRateLimiter
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import RedisOutbox
from app.verification.channels import Channel
from app.verification.idempotency import Claim, IdempotentRequest, KeptAnswer
from app.verification.model import CallState, CallStatus, Status, WrongCode
from app.verification.phone import Phone
from app.verification.policy import Allowance, Policy
from app.verification.ports import CallId, CallUpdate, CodeCheck, NewCall
from tests.outcomes import expect
from tests.policies import make_guard_rules, make_policy
from tests.starting import start


class OneSlotPolicy(Policy):
    """Leaves out the limits that lie in slots of their own, but have to be decided in the script of the check."""

    def for_failed_checks(self, *, client: str, address: str | None) -> Iterator[Allowance]:
        return iter(())


POLICY = OneSlotPolicy(**{item.name: getattr(make_policy(), item.name) for item in fields(Policy)})


@pytest.fixture(scope="module")
def cluster_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start a cluster of one node; it refuses a script with keys in two slots like any cluster."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    command = [
        *(embedded._find_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""),
        *("--cluster-enabled", "yes", "--cluster-port", "0" if port > 55_000 else str(port + 10_000)),
    ]
    folder = tmp_path_factory.mktemp("cluster")
    with subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL) as node:
        form_cluster(port)
        yield port
        node.terminate()


def form_cluster(port: int) -> None:
    """Assign all slots to the node, and wait until it serves them."""
    deadline = time.monotonic() + 10
    with SyncRedis(port=port) as node:
        while True:
            with suppress(RedisConnectionError):
                info = node.cluster("INFO")
                if info["cluster_state"] == "ok":
                    return
                if info["cluster_slots_assigned"] == "0":
                    node.cluster("ADDSLOTSRANGE", 0, 16383)
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
async def cluster(cluster_port: int) -> AsyncIterator[Redis]:
    client = connect(f"redis://127.0.0.1:{cluster_port}", timeout=1)
    yield client
    await client.aclose()


async def test_every_use_case_runs_on_a_cluster(cluster: Redis) -> None:
    runner = ScriptRunner(cluster, timeout=1)
    store = RedisVerificationStore(runner, phone_key=b"k" * 32)
    limits = RedisRateLimiter(runner, key=b"k" * 32)
    idempotency = RedisIdempotency(runner, key=b"k" * 32)
    guard = RedisFraudGuard(runner, make_guard_rules())
    right = b"r" * 32
    for number in range(20):
        phone = Phone(f"+790012345{number:02}")
        call = NewCall(
            client="shop",
            phone=phone,
            purpose="login",
            channel=Channel.VOICE,
            code_digest=right,
            code_length=6,
            checks=5,
        )
        verification = (await start(store, call, POLICY)).verification
        await store.record_call(verification, 1, CallUpdate(state=CallState(CallStatus.RINGING), ref="ref"))
        await store.read(verification.id, client="shop")
        wrong = await store.check_by_phone(
            phone, "login", CodeCheck(client="shop", candidates=[b"w" * 32], length=6), POLICY
        )
        result = await store.check_by_id(
            verification.id, CodeCheck(client="shop", candidates=[right], length=6), POLICY
        )
        assert (expect(WrongCode, wrong).checks_left, result.status) == (4, Status.VERIFIED)

        other = NewCall(
            client="shop",
            phone=Phone(f"+790112345{number:02}"),
            purpose="login",
            channel=Channel.VOICE,
            code_digest=right,
            code_length=6,
            checks=5,
        )
        canceled = (await start(store, other, POLICY)).verification
        await store.cancel("shop", canceled.id)
        await store.refund(CallId(canceled.id, 1), phone=canceled.phone, client="shop", policy=POLICY)

        for allowance in POLICY.for_calls(client="shop", phone=phone, address="192.0.2.1"):  # each in its own slot
            assert len(await limits.acquire("token", [allowance])) == 1
            await limits.refund("token", [allowance])

        await guard.admit(phone, "shop")
        await guard.refund(phone, "shop")
        guard.succeeded(phone, "shop")
        await guard.flush()
        assert (await guard.blocks(), await guard.suspects(), await guard.lift("+79001234")) == ([], [], False)

        request = IdempotentRequest(client="shop", route="/verify/start", key=str(number), body=b"{}")
        for _ in range(2):
            claim = await idempotency.claim(request)
            assert isinstance(claim, Claim)
            await idempotency.release(claim)
        claim = await idempotency.claim(request)
        assert isinstance(claim, Claim)
        assert await idempotency.keep(claim, KeptAnswer(201, {}, b"{}"), timedelta(days=1))


async def test_webhook_events_are_taken_retried_buried_resent_and_erased_on_a_cluster(cluster: Redis) -> None:
    await cluster.flushall()
    runner, phone = ScriptRunner(cluster, timeout=1), Phone("+79001234567")
    outbox = RedisOutbox(runner, clients={"shop"})
    store = RedisVerificationStore(runner, phone_key=b"k" * 32, outbox=outbox)
    call = NewCall(
        client="shop",
        phone=phone,
        purpose="login",
        channel=Channel.VOICE,
        code_digest=b"r" * 32,
        code_length=6,
        checks=5,
    )
    verification = (await start(store, call, POLICY)).verification
    await store.record_call(verification, 1, CallUpdate(state=CallState(CallStatus.RINGING), ref="ref"))
    await store.cancel("shop", verification.id)

    created, canceled = await outbox.take(10)
    await outbox.set_aside(created, attempts=1, error="status 500", pause=timedelta(0))
    await outbox.set_aside(canceled, attempts=7, error="status 500", pause=None)
    assert await outbox.resend_all() == 1
    assert {each.event.type for each in await outbox.take(10)} == {"verification.created", "verification.canceled"}
    await outbox.done(created)
    assert (await RedisPhoneEraser(cluster, runner, phone_key=b"k" * 32).forget(phone)).events == 2
