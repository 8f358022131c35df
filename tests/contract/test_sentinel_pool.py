"""The primary is the one of the newest configuration that any Sentinel has, found within the store's time-out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from app.store.connection import connect
from app.store.scripts import PROBE, ScriptRunner
from app.store.sentinel import PrimaryPool
from app.verification.errors import StoreFailure, StoreUnavailable
from tests.waiting import PATIENCE, timing

OLD, NEW = ("127.0.0.1", 1), ("127.0.0.1", 2)  # ports where nothing listens
TIMEOUT = 3.0


@dataclass
class FakeSentinel:
    """Names a primary, as the configuration of an epoch has it; ``hangs`` never answers."""

    epoch: int = 1
    primary: tuple[str, int] = OLD
    refusal: bytes = b""
    hangs: bool = False
    connections: int = 0
    commands: list[list[bytes]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while line := await reader.readline():
                command = [(await reader.readuntil(b"\n"), await reader.readline())[1] for _ in range(int(line[1:]))]
                self.commands.append([word.strip() for word in command])
                if not self.hangs:
                    writer.write(self.answer(self.commands[-1]))
        finally:
            writer.close()

    def answer(self, command: list[bytes]) -> bytes:
        if self.refusal and command[0] != b"CLIENT":
            return b"-%b\r\n" % self.refusal
        host, port = (str(part).encode() for part in self.primary)
        match command:
            case [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", b"main"]:
                return _array(host, port)
            case [b"SENTINEL", b"MASTER", b"main"]:
                return _array(b"flags", b"master", b"config-epoch", b"%d" % self.epoch)
        return b"+OK\r\n"


def _array(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


@asynccontextmanager
async def pool_of(
    *sentinels: FakeSentinel, user: str = "", options: str = "", seconds: float = PATIENCE
) -> AsyncIterator[PrimaryPool]:
    async with AsyncExitStack() as stack:
        hosts = []
        for sentinel in sentinels:
            server = await stack.enter_async_context(await asyncio.start_server(sentinel.serve, "127.0.0.1", 0))
            hosts.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        redis = connect(f"redis+sentinel://{user}{','.join(hosts)}/main/0{options}", timeout=seconds)
        stack.push_async_callback(redis.aclose)
        assert isinstance(redis.connection_pool, PrimaryPool)
        yield redis.connection_pool


@pytest.mark.parametrize("newest", range(3))
async def test_the_newest_configuration_counts_whichever_sentinel_has_it(newest: int) -> None:
    sentinels = [FakeSentinel() for _ in range(3)]
    sentinels[newest] = FakeSentinel(epoch=2, primary=NEW)

    async with pool_of(*sentinels) as pool:
        assert await pool.get_master_address() == NEW


async def test_hanging_and_refusing_sentinels_leave_most_of_the_timeout() -> None:
    sentinels = FakeSentinel(hangs=True), FakeSentinel(refusal=b"ERR No such master with that name"), FakeSentinel()

    async with pool_of(*sentinels, seconds=TIMEOUT) as pool, timing() as seconds:
        assert await pool.get_master_address() == OLD
        assert seconds() < TIMEOUT / 2


async def test_connections_to_sentinels_are_kept() -> None:
    sentinel = FakeSentinel()
    async with pool_of(sentinel) as pool:
        for _ in range(3):
            await pool.step()

    assert sentinel.connections == 1


async def test_a_background_step_without_an_answer_fails_as_the_store_does() -> None:
    async with pool_of(FakeSentinel(hangs=True), seconds=TIMEOUT) as pool:
        with pytest.raises(StoreUnavailable):
            await pool.step()


@pytest.mark.parametrize(
    ("sentinel", "reason"),
    [
        (FakeSentinel(refusal=b"WRONGPASS invalid username-password pair"), StoreFailure.ACCESS_DENIED),
        (FakeSentinel(refusal=b"NOPERM this user has no permissions"), StoreFailure.ACCESS_DENIED),
        (FakeSentinel(hangs=True), StoreFailure.TIMEOUT),
        (FakeSentinel(primary=OLD), StoreFailure.UNREACHABLE),
    ],
)
async def test_why_no_primary_is_reached_is_reported(sentinel: FakeSentinel, reason: StoreFailure) -> None:
    async with pool_of(sentinel, options="?sentinel_password=made-up", seconds=TIMEOUT) as pool:
        runner = ScriptRunner(Redis.from_pool(pool), timeout=TIMEOUT)
        with pytest.raises(StoreUnavailable) as raised:
            await runner.run(PROBE, ["{probe}"], [1000])

    assert raised.value.reason is reason


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", []),
        ("?sentinel_password=p%26w", [[b"AUTH", b"p&w"]]),
        ("?sentinel_username=s&sentinel_password=pw", [[b"AUTH", b"s", b"pw"]]),
    ],
)
async def test_sentinels_get_their_own_user_and_never_that_of_redis(options: str, expected: list[list[bytes]]) -> None:
    sentinel = FakeSentinel()
    async with pool_of(sentinel, user="verify:of-redis@", options=options) as pool:
        await pool.get_master_address()

    assert [command for command in sentinel.commands if command[0] == b"AUTH"] == expected
    assert not any(b"of-redis" in word for command in sentinel.commands for word in command)
