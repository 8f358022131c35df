"""Redis Sentinel fails over under load: requests are refused for a moment; nothing is called or verified twice."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from redis.asyncio import Redis

from app.background import Background
from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.settings import Settings
from app.store.connection import connect
from app.store.scripts import PROBE, ScriptRunner
from app.store.sentinel import PrimaryPool
from tests.integration.conftest import run, sandbox_settings
from tests.redis_nodes import Node, bring_back, cut_off
from tests.sentinels import NAME, Topology
from tests.waiting import PATIENCE, timing

RECOVERED_WITHIN = 20.0  # seconds; Sentinel itself needs one to two here, on an idle machine
STORE_TIMEOUT = 1.0
MANY = dict.fromkeys(("calls_per_range", "calls_per_client", "calls_per_day"), 1_000_000)

PHONES = (f"+7901{number:07}" for number in itertools.count())  # the topology keeps what tests store


@pytest.fixture(scope="module")
def running_topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with Topology(tmp_path_factory.mktemp("sentinel"), "--min-replicas-to-write", "1") as topology:
        yield topology


@pytest.fixture
def topology(running_topology: Topology) -> Iterator[Topology]:
    yield running_topology
    running_topology.mend()


@pytest.fixture
def settings(topology: Topology) -> Settings:
    redis = {"url": topology.url, "timeout_seconds": STORE_TIMEOUT}
    return sandbox_settings(topology.url, redis=redis, limit=MANY, guard={"enabled": False})


@pytest.fixture
async def workers(settings: Settings, network: VirtualNetwork) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Run the application twice, as two workers."""
    async with run(create_app(settings, network)) as first, run(create_app(settings, network)) as second:
        yield [first, second]


@pytest.fixture
async def idle(topology: Topology) -> AsyncIterator[ScriptRunner]:
    """Return a worker that has connected, and only does what it does in the background."""
    redis = connect(topology.url, timeout=RECOVERED_WITHIN)
    assert isinstance(redis.connection_pool, PrimaryPool)
    runner = ScriptRunner(redis, timeout=RECOVERED_WITHIN)
    await runner.run(PROBE, ["{idle}"], [1000])
    background = Background()
    background.add("sentinel", redis.connection_pool.step)
    async with background:
        yield runner
    await runner.aclose()
    await redis.aclose()


@dataclass
class Load:
    """Starts and checks verifications on all workers, and repeats what was refused, as clients do."""

    workers: list[httpx.AsyncClient]
    network: VirtualNetwork
    refused_at: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    checks: Counter[int] = field(default_factory=Counter)
    phones: list[str] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)
    guesses: dict[str, dict[str, str]] = field(default_factory=dict)
    loops: list[asyncio.Task[None]] = field(default_factory=list)
    is_over: bool = False

    async def send(self, path: str, body: dict[str, str], worker: int, **headers: str) -> httpx.Response:
        async with timing() as seconds:
            answer = await self.workers[worker % len(self.workers)].post(path, json=body, headers=headers)
            self.took.append(seconds())
        if answer.status_code == 503:
            assert answer.json()["type"] == "/problems/store-unavailable", answer.text
            self.refused_at.append(time.monotonic())
        return answer

    async def verify_one(self) -> None:
        """Start with a key, on one worker after the other until it succeeds, then check the right code."""
        phone = next(PHONES)
        self.phones.append(phone)
        for attempt in itertools.count():
            started = await self.send("/verify/start", {"phone": phone}, attempt, **{"Idempotency-Key": f"key-{phone}"})
            if started.status_code == 201:
                break
            assert started.status_code in {409, 503}, started.text  # 409: a try that was refused is still in progress
            await asyncio.sleep(0.05)
        while not (code := self.network.calls_of(phone)[-1].heard):  # noqa: ASYNC110 - the network has no event
            await asyncio.sleep(0.01)
        self.guesses[phone] = {"verification_id": started.json()["verification_id"], "code": code}
        await self.check_twice(phone)

    async def check_twice(self, phone: str) -> None:
        """Check the right code on both workers at the same time."""
        checks = (self.send("/verify/check", self.guesses[phone], worker) for worker in range(2))
        for answer in await asyncio.gather(*checks):
            self.checks[answer.status_code] += 1
            if answer.status_code == 200 and answer.json()["verified"]:
                self.verified.append(phone)

    async def verify_many(self) -> None:
        while not self.is_over:
            await self.verify_one()
            await asyncio.sleep(0.02)


async def start(api: httpx.AsyncClient, phone: str) -> str:
    """Return the id of a new verification, or an empty text if the store was unavailable."""
    answer = await api.post("/verify/start", json={"phone": phone})
    assert answer.status_code == 201 or answer.json()["type"] == "/problems/store-unavailable", answer.text
    return str(answer.json().get("verification_id", ""))


@contextlib.asynccontextmanager
async def under_load(workers: list[httpx.AsyncClient], network: VirtualNetwork) -> AsyncIterator[Load]:
    load = Load(workers, network)
    load.loops = [asyncio.create_task(load.verify_many()) for _ in range(4)]
    try:
        await progress(load)
        yield load
    finally:
        load.is_over = True
        await asyncio.wait(load.loops, timeout=10)
        for loop in load.loops:
            loop.cancel()
        await asyncio.gather(*load.loops, return_exceptions=True)


async def progress(load: Load) -> None:
    """Wait until some more verifications have succeeded, none of which was begun before."""
    before, deadline = len(load.verified) + 10, time.monotonic() + PATIENCE
    while len(load.verified) < before:
        for loop in load.loops:
            assert not loop.done(), loop.exception()
        assert time.monotonic() < deadline, load.checks
        await asyncio.sleep(0.02)


async def switched(worker: ScriptRunner, primary: Node) -> None:
    """Wait until a worker knows of another primary."""
    assert isinstance(worker._redis, Redis)
    pool = worker._redis.connection_pool
    assert isinstance(pool, PrimaryPool)
    async with asyncio.timeout(RECOVERED_WITHIN):
        while pool.master_address is None or pool.master_address[1] == primary.port:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


def fail_over(topology: Topology, primary: Node) -> None:
    """Fail over as docs/operations.md says: without the pause, the old primary would take writes that get lost."""
    primary.send("CLIENT", "PAUSE", 5000, "WRITE")
    topology.sentinels[0].send("SENTINEL", "FAILOVER", NAME)


def kill(topology: Topology, primary: Node) -> None:
    primary.kill()


def pause(topology: Topology, primary: Node) -> None:
    primary.pause()


def partition(topology: Topology, primary: Node) -> None:
    """Leave the service alone with a primary that nobody else reaches; ``min-replicas-to-write`` is 1."""
    cut_off(primary)


@pytest.mark.parametrize("fail", [fail_over, kill, pause, partition])
async def test_a_failover_under_load_is_a_moment_of_503_and_nothing_happens_twice(
    fail: Callable[[Topology, Node], None],
    topology: Topology,
    workers: list[httpx.AsyncClient],
    idle: ScriptRunner,
    network: VirtualNetwork,
) -> None:
    primary = topology.primary
    followed = await start(workers[0], next(PHONES))
    events = asyncio.create_task(workers[0].get(f"/verify/{followed}/events"))
    async with under_load(workers, network) as load:
        failed_at = time.monotonic()
        await asyncio.to_thread(fail, topology, primary)
        await asyncio.to_thread(topology.wait_for_failover, primary)
        await progress(load)
        if fail is not kill:
            # The old primary returns with its old data, and takes writes until a Sentinel makes it a replica.
            await switched(idle, primary)
            bring_back(primary)
            await idle.run(PROBE, ["{idle}"], [60_000])
            await asyncio.to_thread(topology.wait_until_whole)
            await progress(load)
            assert topology.primary.send("DEL", "pv3{idle}") == 1
    for phone in load.guesses:
        await load.check_twice(phone)
    await workers[1].post(f"/verify/{followed}/cancel")

    assert max(load.refused_at, default=failed_at) - failed_at < RECOVERED_WITHIN
    assert max(load.took) < 3 * STORE_TIMEOUT  # before the call, and to record it
    assert max(len(network.calls_of(phone)) for phone in load.phones) == 1
    assert Counter(load.verified).most_common(1)[0][1] == 1
    assert load.checks.keys() <= {200, 409, 503}  # 409: already used
    assert '"status":"canceled"' in (await events).text


async def test_dead_and_hanging_sentinels_delay_a_connection_only_a_little(
    topology: Topology, settings: Settings, network: VirtualNetwork
) -> None:
    topology.sentinels[0].kill()
    topology.sentinels[1].pause()
    async with run(create_app(settings, network)) as api, timing() as seconds:
        assert await start(api, next(PHONES))
        assert seconds() < STORE_TIMEOUT


async def test_without_sentinels_a_connection_is_kept_and_a_new_one_is_refused_until_they_return(
    topology: Topology, settings: Settings, network: VirtualNetwork
) -> None:
    async with run(create_app(settings, network)) as connected:
        assert await start(connected, next(PHONES))
        for sentinel in topology.sentinels:
            sentinel.kill()

        assert await start(connected, next(PHONES))
        assert (await connected.get("/readyz")).status_code == 200
        assert 'step="sentinel"' in (await connected.get("/metrics")).text

    async with run(create_app(settings, network)) as unconnected:
        phone = next(PHONES)
        async with timing() as seconds:
            assert not await start(unconnected, phone)
            assert seconds() < 2 * STORE_TIMEOUT
        assert network.calls_of(phone) == []
        assert (await unconnected.get("/readyz")).status_code == 503

        for sentinel in topology.sentinels:
            topology.start_sentinel(sentinel)
        assert await start(unconnected, phone)
