"""The ACL of Sentinels in docs/operations.md: the service and doctor work with it, and each permission is needed."""

import asyncio
import re
import shlex
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from app.sandbox import embedded
from app.store.connection import connect
from app.store.health import RedisUnreachable, examine_sentinel
from app.store.sentinel import PrimaryPool
from tests.contract.test_redis_acl import OPERATOR_RIGHTS, PASSWORD, ROOT, SET_INFO, debian_redis, pasted, verify
from tests.contract.test_redis_acl import RIGHTS as REDIS_RIGHTS
from tests.e2e.test_commands import run
from tests.redis_nodes import USER, Node
from tests.sentinels import NAME, Topology

(BLOCK,) = re.findall(r"```sh\n(SENTINEL_RIGHTS=.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
RIGHTS = shlex.split(BLOCK)[0].partition("=")[2].split()


@pytest.fixture(scope="module", params=["embedded", "debian"])
def sentinel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Run a Sentinel of a primary that is down."""
    folder = tmp_path_factory.mktemp("sentinel")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    configuration = folder / "sentinel.conf"
    configuration.write_text(f"bind 127.0.0.1\nsentinel monitor {NAME} 127.0.0.1 1 2\n")
    binary = debian_redis() if request.param == "debian" else embedded._find_binary()
    sentinel = Node(folder, port, (str(configuration), "--sentinel"), binary)
    sentinel.start()
    yield sentinel
    sentinel.kill()


def create_user(node: Node, rights: list[str], *, but: str = "") -> None:
    """Create the user again with these permissions, and clear the ACL log."""
    with suppress(ResponseError):  # Redis 7.0 does not know it
        node.send("ACL", "SETUSER", "nobody", SET_INFO)
        rights = [*rights, SET_INFO]
    given = [right for right in rights if right != but]
    node.send("ACL", "SETUSER", "verify", "reset", "on", f">{PASSWORD}", *given)
    node.send("ACL", "LOG", "RESET")


def refusals(node: Node) -> set[str]:
    """Return the commands that the user was denied."""
    return {entry["object"] for entry in node.send("ACL", "LOG") if entry["username"] == "verify"}


@asynccontextmanager
async def pool_of(sentinel: Node) -> AsyncIterator[PrimaryPool]:
    options = f"sentinel_username=verify&sentinel_password={PASSWORD}"
    redis = connect(f"redis+sentinel://{sentinel.address}/{NAME}?{options}", timeout=5)
    assert isinstance(redis.connection_pool, PrimaryPool)
    try:
        yield redis.connection_pool
    finally:
        await redis.aclose()


async def use(sentinel: Node) -> None:
    """Do what the service does, and what doctor does."""
    async with pool_of(sentinel) as pool:
        (client,) = pool.sentinels.values()
        assert not (await examine_sentinel(client, NAME, timeout=5)).has_quorum
        assert await pool.get_master_address() == ("127.0.0.1", 1)


async def test_the_service_and_doctor_work_with_the_documented_permissions(sentinel: Node) -> None:
    create_user(sentinel, RIGHTS)

    await use(sentinel)

    assert refusals(sentinel) == set()


@pytest.mark.parametrize("right", RIGHTS)
async def test_every_documented_permission_is_needed(right: str, sentinel: Node) -> None:
    create_user(sentinel, RIGHTS, but=right)

    with suppress(RedisUnreachable):
        await use(sentinel)

    assert refusals(sentinel) == {right.removeprefix("+")}


def test_the_documented_commands_create_the_user_on_each_sentinel_and_keep_it(sentinel: Node, tmp_path: Path) -> None:
    calls = pasted(tmp_path, BLOCK)

    assert {call[1] for call in calls} == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    commands = [call[4:] for call in calls]
    assert commands[:2] * 3 == commands
    assert commands[0] == ["ACL", "SETUSER", "verify", "reset", "on", ">a-third-password", *RIGHTS]
    for command in commands[:2]:
        assert sentinel.send(*command) == "OK"
    sentinel.kill()
    sentinel.start()
    assert "verify" in sentinel.send("ACL", "USERS")


async def test_the_whole_service_runs_behind_sentinels_with_the_documented_users(tmp_path: Path) -> None:
    options = f"sentinel_username=verify&sentinel_password={PASSWORD}"
    with Topology(tmp_path) as topology:
        url = topology.url.replace(USER, f"verify:{PASSWORD}") + f"?{options}"
        for node in topology.sentinels:
            create_user(node, RIGHTS)
        for node in topology.nodes:
            create_user(node, REDIS_RIGHTS)
        redis = connect(url, timeout=5)
        await verify(redis)
        await redis.aclose()
        denied = set[str]().union(*map(refusals, (*topology.nodes, *topology.sentinels)))

        for node in topology.nodes:
            create_user(node, OPERATOR_RIGHTS)
        environment = {"MODE": "sandbox", "REDIS_URL": url, "SECRET_KEY": "a-secret-key-that-only-tests-use-0123456789"}
        done = await asyncio.to_thread(run, "doctor", cwd=tmp_path, **environment)
        forgotten = await asyncio.to_thread(run, "forget", "+79001234567", "--yes", cwd=tmp_path, **environment)

    assert denied == set()
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 of 3 answer" in done.stdout
    assert PASSWORD not in done.stdout
    assert (forgotten.returncode, forgotten.stderr) == (0, "")
