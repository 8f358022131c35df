"""A Redis that answers but refuses commands: a replica, out of memory, missing permissions, closed connections."""

import asyncio
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.main import create_app
from app.sandbox import embedded
from app.sandbox.network import VirtualNetwork
from app.store.connection import connect
from app.store.erasure import RedisPhoneEraser
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.store.webhooks import RedisOutbox
from app.verification.channels import Channel
from app.verification.errors import StoreFailure, StoreUnavailable
from app.verification.model import CallState, CallStatus
from app.verification.phone import Phone
from app.verification.ports import CallUpdate, NewCall
from tests.attempts import attempts_on
from tests.integration.conftest import run, sandbox_settings
from tests.limiters import make_limiter
from tests.policies import make_policy
from tests.waiting import PATIENCE, eventually

KEY = b"a key of the tests, known to all"
PHONE = "+79001234567"
OTHER = "+79007654321"
PROBE_LASTS = 1.1  # seconds, and a little more: how old the answer of /readyz may be


@dataclass
class Server:
    """A Redis server on a TCP port and a Unix socket, which can be restarted at the same addresses."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    def start(self) -> None:
        command = [
            *(embedded._find_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--unixsocket", str(self.socket), "--save", "", "--maxmemory-policy", "noeviction"),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        with SyncRedis(port=self.port) as client:
            while True:
                try:
                    client.ping()
                except RedisConnectionError:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                else:
                    return

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(folder, int(listener.getsockname()[1]))
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path / "server") as server:
        yield server


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[Redis]:
    client = connect(server.url, timeout=5)
    yield client
    await client.aclose()


@pytest.fixture
def address(server: Server, tmp_path: Path) -> Path:
    """Return the path of a link to the server's socket, which can be switched to another server, as a DNS name can."""
    link = tmp_path / "redis"
    link.symlink_to(server.socket)
    return link


@pytest.fixture
async def api(server: Server, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    async with run(create_app(sandbox_settings(server.url), network)) as client:
        yield client


@pytest.fixture
async def api_by_name(address: Path, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    async with run(create_app(sandbox_settings(f"unix://{address}"), network)) as client:
        yield client


async def start(api: httpx.AsyncClient, phone: str) -> httpx.Response:
    return await api.post("/verify/start", json={"phone": phone})


async def started(api: httpx.AsyncClient, phone: str = PHONE) -> str:
    answer = await start(api, phone)
    assert answer.status_code == 201
    return str(answer.json()["verification_id"])


async def refusal(request: Awaitable[httpx.Response]) -> str:
    """Return why a request was refused."""
    answer = await request
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/store-unavailable")
    return str(answer.json()["detail"])


async def unready(api: httpx.AsyncClient) -> str:
    """Return why the service is not ready."""
    answer = await api.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    return str(answer.json()["reasons"][0])


async def store_up(api: httpx.AsyncClient) -> str:
    (line,) = (
        line for line in (await api.get("/metrics")).text.splitlines() if line.startswith("plusofon_verify_store_up ")
    )
    return line.split()[1]


def point_at(address: Path, server: Server) -> None:
    address.unlink()
    address.symlink_to(server.socket)


async def test_requests_to_a_demoted_primary_are_refused_until_the_new_primary_is_used(
    api_by_name: httpx.AsyncClient, admin: Redis, address: Path, tmp_path: Path, network: VirtualNetwork
) -> None:
    api = api_by_name
    verification_id = await started(api)
    await admin.replicaof("127.0.0.1", "1")  # there is no such primary, so its data becomes stale
    replica = "Redis is a read-only replica."

    assert await refusal(start(api, OTHER)) == replica
    assert await refusal(api.get(f"/verify/{verification_id}")) == replica
    assert (
        await refusal(api.post("/verify/check", json={"verification_id": verification_id, "code": "000000"})) == replica
    )
    assert await refusal(api.post("/verify/check", json={"phone": OTHER, "code": "000000"})) == replica
    assert await refusal(api.post(f"/verify/{verification_id}/cancel")) == replica
    assert await unready(api) == replica
    assert await store_up(api) == "0.0"
    assert network.calls_of(OTHER) == []

    with running(tmp_path / "promoted") as promoted:
        point_at(address, promoted)
        await started(api, OTHER)
        await asyncio.sleep(PROBE_LASTS)
        assert (await api.get("/readyz")).status_code == 200
        assert await store_up(api) == "1.0"


async def test_a_replica_that_becomes_primary_again_is_used_without_a_restart(
    api: httpx.AsyncClient, admin: Redis
) -> None:
    verification_id = await started(api)
    await admin.replicaof("127.0.0.1", "1")
    await refusal(api.get(f"/verify/{verification_id}"))

    await admin.replicaof("NO", "ONE")

    assert (await api.get(f"/verify/{verification_id}")).status_code == 200


async def test_no_request_fails_after_a_failover_once_the_address_leads_to_the_new_primary(
    api_by_name: httpx.AsyncClient, admin: Redis, address: Path, tmp_path: Path
) -> None:
    api = api_by_name
    await started(api)
    with running(tmp_path / "promoted") as promoted:
        await admin.replicaof("127.0.0.1", "1")
        point_at(address, promoted)

        answers = await asyncio.gather(*(start(api, f"+790012345{number:02}") for number in range(20)))

        assert {answer.status_code for answer in answers} == {201}


async def test_a_replica_that_refuses_stale_reads_is_reported_as_a_replica(
    api: httpx.AsyncClient, admin: Redis
) -> None:
    verification_id = await started(api)
    await admin.config_set("replica-serve-stale-data", "no")
    await admin.replicaof("127.0.0.1", "1")

    assert await refusal(api.get(f"/verify/{verification_id}")) == "Redis is a read-only replica."
    assert await unready(api) == "Redis is a read-only replica."


async def fill(admin: Redis, _: Server) -> None:
    await admin.config_set("maxmemory", "1")


async def lose_the_disk(admin: Redis, server: Server) -> None:
    shutil.rmtree(server.folder)
    await admin.config_set("save", "3600 1")
    await admin.bgsave()
    await eventually(lambda: admin.info("persistence"), lambda info: info["rdb_last_bgsave_status"] != "ok")


async def lose_the_replicas(admin: Redis, _: Server) -> None:
    await admin.config_set("min-replicas-to-write", "1")


def revoke_command(right: str) -> Callable[[Redis, Server], Awaitable[None]]:
    async def take(admin: Redis, _: Server) -> None:
        await admin.acl_setuser("default", enabled=True, nopass=True, commands=[right])

    return take


async def revoke_keys(admin: Redis, _: Server) -> None:
    await admin.acl_setuser("default", enabled=True, nopass=True, reset_keys=True, keys=["others:*"])


DENIED = "Redis refuses the service's user: its password is wrong, or it lacks a right."


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault that a test causes in a server, and the reason that the service then reports."""

    name: str
    spoil: Callable[[Redis, Server], Awaitable[None]]
    detail: str
    refuses_starts: bool = True


FAULTS = [
    Fault(name="full", spoil=fill, detail="Redis is out of memory."),
    Fault(name="no disk", spoil=lose_the_disk, detail="Redis cannot save its data, so it takes no writes."),
    Fault(name="no replicas", spoil=lose_the_replicas, detail="Redis has too few replicas to take writes."),
    Fault(name="no keys", spoil=revoke_keys, detail=DENIED),
    *(
        # A start needs no HSET, for example, but a kept answer does.
        Fault(
            name=right,
            spoil=revoke_command(right),
            detail=DENIED,
            refuses_starts=right in {"-evalsha", "-set", "-time"},
        )
        for right in ("-evalsha", "-hset", "-time", "-set", "-hdel", "-zscore")
    ),
]


@pytest.fixture(params=FAULTS, ids=lambda fault: fault.name)
async def fault(request: pytest.FixtureRequest, api: httpx.AsyncClient, admin: Redis, server: Server) -> Fault:
    """Cause a fault in a server that has worked so far."""
    fault: Fault = request.param
    await started(api)
    await asyncio.sleep(0.1)  # the background writes are done
    await fault.spoil(admin, server)
    return fault


async def test_the_reason_of_a_redis_refusal_is_in_the_problem_the_probe_the_metric_and_the_log(
    fault: Fault, api: httpx.AsyncClient, network: VirtualNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    if fault.refuses_starts:
        assert await refusal(start(api, OTHER)) == fault.detail
        assert network.calls_of(OTHER) == []
    assert await unready(api) == fault.detail
    assert await store_up(api) == "0.0"

    logged = [record for record in caplog.records if record.getMessage() == "store.unavailable"]
    assert logged
    assert not any(record.exc_info for record in logged)
    assert all(PHONE[1:] not in str(vars(record)) and "pv3" not in str(vars(record)) for record in logged)


async def test_a_redis_out_of_memory_still_allows_reads_webhook_delivery_refunds_and_erasure(admin: Redis) -> None:
    runner = ScriptRunner(admin, timeout=5)
    outbox, limits = RedisOutbox(runner, clients={"shop"}), make_limiter(admin, key=KEY)
    store = RedisVerificationStore(runner, phone_key=KEY, outbox=outbox)
    call = NewCall(
        client="shop",
        phone=Phone(PHONE),
        purpose="login",
        channel=Channel.VOICE,
        code_digest=b"r" * 32,
        code_length=6,
        checks=5,
    )
    allowances = list(make_policy().for_calls(client="shop", phone=Phone(PHONE), address="192.0.2.1"))
    unplaced = (await store.preview_start(call, make_policy())).call_id
    await store.start(unplaced, call, make_policy())
    other = replace(call, phone=Phone(OTHER))
    verification = (
        await store.start((await store.preview_start(other, make_policy())).call_id, other, make_policy())
    ).verification
    await store.record_call(verification, 1, CallUpdate(state=CallState(CallStatus.RINGING), ref="ref"))
    await store.cancel("shop", verification.id)
    reserved = (await limits.acquire("00000000000a", allowances)).token
    await admin.config_set("maxmemory", "1")

    assert (await store.read(verification.id, client="shop")).id == verification.id
    first, second = await outbox.take(10)
    await outbox.set_aside(first, attempts=1, error="status 500", pause=timedelta())
    await outbox.done(second)
    (again,) = await outbox.take(10)
    await outbox.done(again)
    assert await store.refund(unplaced, phone=call.phone, client="shop", policy=make_policy())
    await limits.refund(reserved, allowances)
    assert [key async for key in admin.scan_iter("pv3{l[i:]*")] == []
    eraser = RedisPhoneEraser(runner, attempts_on(runner, phone_key=KEY), phone_key=KEY)
    assert (await eraser.erase(Phone(OTHER))).verifications == 1
    with pytest.raises(StoreUnavailable) as raised:
        await store.start(unplaced, call, make_policy())
    assert raised.value.reason is StoreFailure.OUT_OF_MEMORY


async def test_a_redis_with_free_memory_again_is_used_without_a_restart(api: httpx.AsyncClient, admin: Redis) -> None:
    await started(api)
    await admin.config_set("maxmemory", "1")
    await refusal(start(api, OTHER))

    await admin.config_set("maxmemory", "0")

    assert (await start(api, OTHER)).status_code == 201


@pytest.mark.parametrize("workers", [1, 3])
async def test_connections_that_redis_closed_while_idle_fail_no_request(
    workers: int, server: Server, admin: Redis
) -> None:
    async with AsyncExitStack() as stack:
        settings = sandbox_settings(server.url)
        apis = [await stack.enter_async_context(run(create_app(settings, VirtualNetwork()))) for _ in range(workers)]
        ids = [await started(api, f"+7900123450{number}") for number, api in enumerate(apis)]

        for _ in range(5):
            await admin.client_kill_filter(_type="normal", skipme=True)
            answers = await asyncio.gather(
                *(api.get(f"/verify/{verification_id}") for api, verification_id in zip(apis, ids, strict=True))
            )
            assert [answer.status_code for answer in answers] == [200] * workers

        server.kill()
        server.start()
        answers = await asyncio.gather(*(start(api, f"+7900123451{number}") for number, api in enumerate(apis)))
        assert [answer.status_code for answer in answers] == [201] * workers


async def test_readiness_and_metrics_share_one_probe_per_second(api: httpx.AsyncClient, admin: Redis) -> None:
    began = time.monotonic()
    probes = set()
    for _ in range(3):
        answers = await asyncio.gather(*(api.get(path) for path in ("/readyz", "/metrics") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        probes.add(await admin.get("pv3{probe}"))

    assert len(probes) <= 1 + (time.monotonic() - began)
    assert 0 < await admin.pttl("pv3{probe}") <= 10_000


async def test_a_thousand_redis_failures_are_a_few_log_lines(
    api: httpx.AsyncClient, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    verification_id = await started(api)
    await admin.replicaof("127.0.0.1", "1")
    caplog.clear()
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(10):
        answers = await asyncio.gather(*(api.get(f"/verify/{verification_id}") for _ in range(100)))
        assert {answer.status_code for answer in answers} == {503}

    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(lines) <= 10 * (loop.time() - began + 1)
    assert not any(record.exc_info for record in lines)
