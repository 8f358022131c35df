"""ScriptRunner: a script that Redis refused to run is retried once on a new connection, any other error is not."""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import hiredis
import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from app.api.problem_types import detail_of
from app.sandbox.embedded import EmbeddedServer
from app.store.connection import connect
from app.store.scripts import Script, ScriptRunner
from app.verification.errors import StoreFailure, StoreUnavailable
from tests.keys import stored
from tests.waiting import timing

pytestmark = pytest.mark.standalone  # a server that fails; tests/contract/test_cluster_runner.py is about several

CUT = b"cut the connection once the command has run"
SILENCE = b"never answer"
REPEATED = {
    "READONLY You can't write against a read only replica.": StoreFailure.REPLICA,
    "READONLY You can't write against a read only replica. script: f00, on @user_script:1.": StoreFailure.REPLICA,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": StoreFailure.REPLICA,
    "LOADING Redis is loading the dataset in memory": StoreFailure.LOADING,
    "NOREPLICAS Not enough good replicas to write.": StoreFailure.TOO_FEW_REPLICAS,
    "CLUSTERDOWN The cluster is down": StoreFailure.CLUSTER,
    "MOVED 3999 127.0.0.1:6381": StoreFailure.CLUSTER,
    "ASK 3999 127.0.0.1:6381": StoreFailure.CLUSTER,
    "TRYAGAIN Multiple keys request during rehashing of slot": StoreFailure.CLUSTER,
    "ERR Script attempted to access a non local key in a cluster node script: f00": StoreFailure.CLUSTER,
}
NOT_REPEATED = {
    "OOM command not allowed when used memory > 'maxmemory'.": StoreFailure.OUT_OF_MEMORY,
    "MISCONF Redis is configured to save RDB snapshots": StoreFailure.CANNOT_SAVE,
    "UNBLOCKED force unblock from blocking operation, instance state changed": StoreFailure.OTHER,
    "BUSY Redis is busy running a script.": StoreFailure.BUSY,
    "NOPERM User verify has no permissions to run the 'evalsha' command": StoreFailure.ACCESS_DENIED,
    "NOAUTH Authentication required.": StoreFailure.ACCESS_DENIED,
    "CROSSSLOT Keys in request don't hash to the same slot": StoreFailure.CLUSTER,
    "ERR user_script:1: READONLY is only mentioned here": StoreFailure.OTHER,
    "SOMETHINGNEW of a later version": StoreFailure.OTHER,
}


class Count(Script):
    """Increment a counter, and return it."""

    def __init__(self) -> None:
        super().__init__("verification", "read")
        self.name, self.source = "count", "#!lua\nreturn redis.call('INCR', KEYS[1])"
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self.load = hiredis.pack_command(("SCRIPT", "LOAD", self.source))  # type: ignore[arg-type] # its stub is wrong


COUNT = Count()


@dataclass
class FaultyRedisProxy:
    """A proxy between the service and a real server; ``plan`` has what happens to the next scripts.

    None forwards a script, as all other commands; an error is returned instead of the server's reply.
    """

    upstream: str
    plan: list[bytes | None] = field(default_factory=list)
    scripts: int = 0
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        server_reader, server_writer = await asyncio.open_unix_connection(self.upstream)
        try:
            while command := await _read_command(reader):
                step = None
                if command[1] == b"EVALSHA":
                    self.scripts += 1
                    step = self.plan.pop(0) if self.plan else None
                if step == SILENCE:
                    await reader.read()
                    return
                if step in {None, CUT}:
                    server_writer.write(command[0])
                    reply = await _read_reply(server_reader)
                    if step == CUT:
                        return
                else:
                    reply = b"-%b\r\n" % step
                writer.write(reply)
        finally:
            server_writer.close()
            writer.close()


async def _read_command(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """Read one command; return its bytes and its first word."""
    raw = await reader.readline()
    if not raw:
        return None
    words = []
    for _ in range(int(raw[1:])):
        size = await reader.readline()
        words.append(await reader.readexactly(int(size[1:]) + 2))
        raw += size + words[-1]
    return raw, words[0].strip()


async def _read_reply(reader: asyncio.StreamReader) -> bytes:
    raw, parser = b"", hiredis.Reader()
    while parser.gets() is False:
        raw += (received := await reader.read(65536))
        parser.feed(received)
    return raw


@pytest.fixture
async def proxy(redis: Redis, redis_url: str, tmp_path: Path) -> AsyncIterator[FaultyRedisProxy]:
    proxy = FaultyRedisProxy(redis_url.removeprefix("unix://"))
    async with await asyncio.start_unix_server(proxy.serve, tmp_path / "s"):
        yield proxy


@asynccontextmanager
async def runner_of(folder: Path, *, budget: float = 20) -> AsyncIterator[ScriptRunner]:
    client = connect(f"unix://{folder / 's'}", timeout=budget)
    runner = ScriptRunner(client, timeout=budget)
    try:
        yield runner
    finally:
        await runner.aclose()
        await client.aclose()


@pytest.fixture
async def runner(proxy: FaultyRedisProxy, tmp_path: Path) -> AsyncIterator[ScriptRunner]:
    """A connected runner on a server that has loaded the script."""
    async with runner_of(tmp_path) as runner:
        await runner.run(COUNT, ["warm"], [])
        proxy.scripts = proxy.connections = 0
        yield runner


async def failure(runner: ScriptRunner) -> StoreFailure:
    with pytest.raises(StoreUnavailable) as raised:
        await runner.run(COUNT, ["runs"], [])
    return raised.value.reason


@pytest.mark.parametrize("error", REPEATED, ids=str)
async def test_a_script_that_redis_refused_to_run_is_retried_on_a_new_connection(
    error: str, proxy: FaultyRedisProxy, runner: ScriptRunner
) -> None:
    proxy.plan = [error.encode()]

    assert await runner.run(COUNT, ["runs"], []) == 1
    assert (proxy.scripts, proxy.connections) == (2, 1)


@pytest.mark.parametrize("error", REPEATED, ids=str)
async def test_a_script_is_retried_only_once(
    error: str, proxy: FaultyRedisProxy, runner: ScriptRunner, redis: Redis
) -> None:
    proxy.plan = [error.encode()] * 2

    assert await failure(runner) == REPEATED[error]
    assert (proxy.scripts, proxy.connections) == (2, 1)
    assert await redis.get(stored("runs")) is None
    assert await runner.run(COUNT, ["runs"], []) == 1


@pytest.mark.parametrize("error", NOT_REPEATED, ids=str)
async def test_any_other_error_is_raised_without_a_retry(
    error: str, proxy: FaultyRedisProxy, runner: ScriptRunner
) -> None:
    proxy.plan = [error.encode()]

    assert await failure(runner) == NOT_REPEATED[error]
    assert proxy.scripts == 1


async def test_a_script_is_loaded_again_on_a_new_primary(
    proxy: FaultyRedisProxy, runner: ScriptRunner, redis: Redis
) -> None:
    await redis.script_flush()
    proxy.plan = [b"READONLY You can't write against a read only replica."]

    assert await runner.run(COUNT, ["runs"], []) == 1


async def test_only_refused_scripts_of_a_batch_are_retried(
    proxy: FaultyRedisProxy, runner: ScriptRunner, redis: Redis
) -> None:
    proxy.plan = [None, b"READONLY x", None, b"OOM x", None, b"TRYAGAIN x"]
    keys = [f"k{number}" for number in range(6)]

    results = await asyncio.gather(*(runner.run(COUNT, [key], []) for key in keys), return_exceptions=True)

    assert [result for result in results if not isinstance(result, StoreUnavailable)] == [1] * 5
    assert isinstance(results[3], StoreUnavailable)
    assert await redis.mget(map(stored, keys)) == [b"1", b"1", b"1", None, b"1", b"1"]


async def test_a_script_whose_reply_was_lost_is_not_retried(
    proxy: FaultyRedisProxy, runner: ScriptRunner, redis: Redis
) -> None:
    proxy.plan = [CUT]

    assert await failure(runner) == StoreFailure.CONNECTION_LOST
    assert await redis.get(stored("runs")) == b"1"
    assert proxy.scripts == 1
    assert await runner.run(COUNT, ["runs"], []) == 2


async def test_replies_received_before_a_lost_connection_are_returned(
    proxy: FaultyRedisProxy, runner: ScriptRunner
) -> None:
    proxy.plan = [None, CUT]

    results = await asyncio.gather(*(runner.run(COUNT, [key], []) for key in "abc"), return_exceptions=True)

    assert results[0] == 1
    assert [getattr(result, "reason", None) for result in results[1:]] == [StoreFailure.CONNECTION_LOST] * 2


async def test_a_retry_whose_reply_was_lost_is_not_retried_again(
    proxy: FaultyRedisProxy, runner: ScriptRunner, redis: Redis
) -> None:
    proxy.plan = [b"READONLY x", CUT]

    assert await failure(runner) == StoreFailure.CONNECTION_LOST
    assert (await redis.get(stored("runs")), proxy.scripts) == (b"1", 2)


async def test_scripts_queued_while_a_connection_is_lost_run_on_the_next_one(
    proxy: FaultyRedisProxy, runner: ScriptRunner
) -> None:
    proxy.plan = [CUT]
    first = asyncio.create_task(runner.run(COUNT, ["a"], []))
    await asyncio.sleep(0)  # the first one is being written
    await asyncio.sleep(0)
    later = await asyncio.gather(*(runner.run(COUNT, [key], []) for key in "bc"))

    with pytest.raises(StoreUnavailable):
        await first
    assert later == [1, 1]


async def test_a_script_and_its_retry_share_one_timeout(proxy: FaultyRedisProxy, tmp_path: Path) -> None:
    async with runner_of(tmp_path, budget=3) as runner:
        await runner.run(COUNT, ["warm"], [])
        proxy.plan = [b"LOADING x", SILENCE]

        async with timing() as seconds:
            assert await failure(runner) == StoreFailure.TIMEOUT
            assert seconds() < 5


async def test_an_address_without_a_server_is_unreachable(tmp_path: Path) -> None:
    async with runner_of(tmp_path) as runner:
        assert await failure(runner) == StoreFailure.UNREACHABLE


@pytest.mark.parametrize("rights", [[], ["on", ">made-up"], ["on", ">made-up", "~pv*", "+evalsha", "+client"]])
async def test_missing_permissions_are_access_denied_at_connecting_and_later(
    rights: list[str], redis: Redis, redis_url: str
) -> None:
    await redis.execute_command("ACL", "SETUSER", "limited", "reset", *rights)  # type: ignore[no-untyped-call] # the library's own
    client = connect(f"{redis_url.replace('unix://', 'unix://limited@')}?password=made-up&db=1", timeout=20)
    try:
        assert await failure(ScriptRunner(client, timeout=20)) == StoreFailure.ACCESS_DENIED
    finally:
        await client.aclose()
        await redis.execute_command("ACL", "DELUSER", "limited")  # type: ignore[no-untyped-call] # the library's own


async def test_the_log_has_the_code_of_an_error_and_not_its_text(
    proxy: FaultyRedisProxy, runner: ScriptRunner, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.plan = [b"ERR in pv3{a1b}:79001234567 at 192.0.2.7", b"MISCONF of pv3{a1b}:79001234567"]
    for _ in range(2):
        await failure(runner)

    logged = [vars(record) for record in caplog.records if record.getMessage() == "store.unavailable"]
    assert [(one["reason"], one["error"], one["commands"]) for one in logged] == [
        ("other", "ERR", 1),
        ("cannot_save", "MISCONF", 1),
    ]
    assert not any(secret in str(one) for one in logged for secret in ("pv3", "79001234567", "192.0.2.7"))


async def test_repeated_failures_are_aggregated_in_few_log_lines(
    proxy: FaultyRedisProxy, runner: ScriptRunner, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.plan = [b"OOM x"] * 1000
    for _ in range(100):
        await asyncio.gather(*(failure(runner) for _ in range(5)))
    await asyncio.sleep(0.25)
    await failure(runner)

    counts = [vars(record)["commands"] for record in caplog.records if record.levelno >= logging.ERROR]
    assert counts[0] == 5
    assert sum(counts) == 501
    assert len(counts) < 50


async def test_redis_is_probed_at_most_once_a_second(
    proxy: FaultyRedisProxy, runner: ScriptRunner, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr("app.store.scripts.time", clock)
    for _ in range(3):
        await asyncio.gather(*(runner.ping() for _ in range(100)))
        now += 0.3
    assert proxy.scripts == 2  # one to load the script
    assert 0 < await redis.pttl("pv3{probe}") <= 10_000

    now += 0.2
    proxy.plan = [b"OOM x"]
    results = await asyncio.gather(*(runner.ping() for _ in range(100)), return_exceptions=True)
    assert {getattr(result, "reason", None) for result in results} == {StoreFailure.OUT_OF_MEMORY}
    assert proxy.scripts == 3


async def test_canceling_one_ping_does_not_cancel_the_shared_probe(proxy: FaultyRedisProxy, tmp_path: Path) -> None:
    async with runner_of(tmp_path) as runner:
        first = asyncio.create_task(runner.ping())
        await asyncio.sleep(0)
        second = asyncio.create_task(runner.ping())
        await asyncio.sleep(0)
        first.cancel()

        await second
        assert first.cancelled()
        assert proxy.scripts <= 2


LUA = Path(__file__).parents[2] / "app" / "store" / "lua"
SCRIPTS = sorted(f"{file.parent.name}.{file.stem}" for file in LUA.glob("*/*.lua"))


@pytest.fixture(scope="module")
def spare() -> Iterator[EmbeddedServer]:
    """A separate server, because these tests change its configuration."""
    with EmbeddedServer() as server:
        yield server


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_replica_and_a_full_redis_refuse_a_script_before_it_runs(name: str, spare: EmbeddedServer) -> None:
    """Without keys and arguments each script would fail differently if it ran."""
    client = connect(spare.url, timeout=20)
    runner = ScriptRunner(client, timeout=20)
    script = Script(*name.split("."))

    async def reason() -> StoreFailure:
        with pytest.raises(StoreUnavailable) as raised:
            await runner.run(script, [], [])
        return raised.value.reason

    try:
        await client.replicaof("127.0.0.1", "1")
        assert await reason() == StoreFailure.REPLICA
        await client.replicaof("NO", "ONE")
        if "flags=allow-oom" not in script.source.partition("\n")[0]:
            await client.config_set("maxmemory", "1")
            assert await reason() == StoreFailure.OUT_OF_MEMORY
    finally:
        await client.replicaof("NO", "ONE")
        await client.config_set("maxmemory", "0")
        await client.aclose()


async def test_a_script_is_not_stopped_between_two_writes(redis: Redis) -> None:
    """Memory that runs out between two writes of a script refuses the next script, not the second write."""
    await redis.config_set("maxmemory", (await redis.info("memory"))["used_memory"] + 500_000)
    try:
        half = "#!lua\nfor i = 1, 20 do redis.call('SET', 'k' .. i, string.rep('x', 100000)) end return 1"
        assert await redis.eval(half, 0) == 1
        with pytest.raises(OutOfMemoryError):
            await redis.eval(half, 0)
        assert await redis.dbsize() == 20
    finally:
        await redis.config_set("maxmemory", "0")


def test_every_kind_of_failure_has_a_description() -> None:
    details = [detail_of(StoreUnavailable(reason)) for reason in StoreFailure]

    assert len(set(details)) == len(StoreFailure)
    assert all("Redis" in detail and detail.endswith(".") for detail in details)


def test_the_probe_tests_the_permission_for_every_command_of_the_service() -> None:
    used, probed = set[str](), set[str]()
    for file in LUA.rglob("*.lua"):
        text = file.read_text(encoding="utf-8")
        if file.name == "probe.lua":
            probed = set(re.findall(r"'([A-Z]{3,})'", text)) - {"CREATE"}
        if file.parent.name != "erasure":
            used |= set(re.findall(r"(?:redis\.p?call|in_group)\('([A-Z]+)'", text))

    assert probed == used
