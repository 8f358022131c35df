"""Two machines with two workers each behind a balancer are restarted one after the other, and no caller notices.

The balancer is told of a restart, as docs/operations.md says; requests in progress are still there when SIGTERM comes.
"""

import asyncio
import contextlib
import hashlib
import itertools
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import trustme

from app.sandbox.embedded import EmbeddedServer
from app.sandbox.network import VirtualNetwork
from app.sandbox.plusofon_api import create_sandbox_app
from app.sandbox.server import SandboxServer
from tests.e2e.conftest import free_port
from tests.e2e.test_serving import API_KEY, SECRETS, serving

WORKERS = 2  # of each machine
USERS = 6  # at once
CALLS_PER_ADDRESS = 3
CHECKS = 5
UNLIMITED = (
    *("LIMIT_CALLS_PER_RANGE", "LIMIT_CALLS_PER_CLIENT", "LIMIT_CALLS_PER_DAY"),
    *("LIMIT_FAILED_CHECKS_PER_PHONE", "LIMIT_FAILED_CHECKS_PER_CLIENT"),
)
PURPOSE = "login"


class Machine:
    """``plusofon-verify serve`` with two workers on one port; a context manager for each of its lives."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.port = free_port()
        self.lives: list[Path] = []
        self._folder = folder
        self._environment = environment
        self._life = contextlib.ExitStack()

    def start(self) -> None:
        self.lives.append(self._folder / str(len(self.lives)))
        self.lives[-1].mkdir(parents=True)
        arguments = ("--workers", str(WORKERS))
        served = serving(self.lives[-1], *arguments, environment=self._environment, port=self.port)
        self._life.enter_context(served).wait_for_workers(WORKERS)

    def stop(self) -> None:
        """Send SIGTERM, and wait for the end."""
        self._life.close()

    def restart(self) -> None:
        self.stop()
        self.start()


@dataclass
class Forwarder:
    """Forwards connections to one port after another, but not to those that are drained; an async context manager."""

    ports: list[int]
    tls: ssl.SSLContext | None = None
    drained: set[int] = field(default_factory=set)
    address: str = field(init=False)
    _server: asyncio.Server = field(init=False)
    _turn: Iterator[int] = field(default_factory=itertools.count)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0, ssl=self.tls)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        usable = [port for port in self.ports if port not in self.drained]
        there, back = await asyncio.open_connection("127.0.0.1", usable[next(self._turn) % len(usable)])
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
def redis_url() -> Iterator[str]:
    with EmbeddedServer() as server:
        yield server.url


@pytest.fixture
def network() -> VirtualNetwork:
    return VirtualNetwork(pace=0.02)


@pytest.fixture
async def machines(redis_url: str, network: VirtualNetwork, tmp_path: Path) -> AsyncIterator[list[Machine]]:
    """Run two machines in production, with a provider over TLS."""
    authority, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    provider = create_sandbox_app(
        network, user_id=SECRETS["PLUSOFON_USER_ID"], access_token=SECRETS["PLUSOFON_ACCESS_TOKEN"]
    )
    async with SandboxServer(provider) as server, Forwarder([int(server.url.rpartition(":")[2])], tls) as over_tls:
        environment = {
            **SECRETS,
            **dict.fromkeys(UNLIMITED, "1000000"),
            "API_KEYS": f"shop:{hashlib.sha256(API_KEY.encode()).hexdigest()}",
            "REDIS_URL": redis_url,
            "PLUSOFON_BASE_URL": f"https://{over_tls.address}",
            "OUTBOUND_CA_FILE": str(tmp_path / "ca.pem"),
            "LIMIT_CALLS_PER_ADDRESS": str(CALLS_PER_ADDRESS),
            "CHECK_LIMIT": str(CHECKS),
            "GUARD_ENABLED": "false",
            # Not what is tested here, and short on a machine that does much else.
            "REDIS_TIMEOUT_SECONDS": "10",
            "PLUSOFON_CONNECT_TIMEOUT_SECONDS": "10",
            "PLUSOFON_TIMEOUT_SECONDS": "20",
        }
        machines = [Machine(tmp_path / name, environment) for name in ("a", "b")]
        try:
            await asyncio.gather(*(asyncio.to_thread(machine.start) for machine in machines))
            yield machines
        finally:
            await asyncio.gather(*(asyncio.to_thread(machine.stop) for machine in machines))


@dataclass
class Users:
    """Users who never retry: a request that fails is an error, and so is any answer but exactly the right one."""

    http: aiohttp.ClientSession
    url: str
    network: VirtualNetwork
    numbers: Iterator[int] = field(default_factory=itertools.count)
    answers: Counter[str] = field(default_factory=Counter)

    async def send(self, what: str, path: str, **body: str) -> tuple[int, dict[str, Any]]:
        async with self.http.post(f"{self.url}{path}", json=body) as response:
            self.answers[f"{what} {response.status}"] += 1
            return response.status, await response.json()

    async def start(self, **body: str) -> tuple[int, dict[str, Any], str]:
        phone = f"+7901{next(self.numbers):07}"
        return *await self.send("start", "/verify/start", phone=phone, purpose=PURPOSE, **body), phone

    async def hear(self, phone: str) -> str:
        while not (code := self.network.calls_of(phone)[-1].heard):  # noqa: ASYNC110 - the network has no event
            await asyncio.sleep(0.01)
        return code

    async def verify(self) -> None:
        """Mistype, then verify with two requests at once, of which one succeeds; the token is redeemed once."""
        status, started, phone = await self.start()
        assert (status, started.get("status")) == (201, "pending"), started
        it, code = started["verification_id"], await self.hear(phone)
        wrong = await self.send("wrong", "/verify/check", verification_id=it, code=_another(code))
        assert (wrong[0], wrong[1].get("verified"), wrong[1].get("checks_left")) == (200, False, CHECKS - 1), wrong
        rights = await asyncio.gather(
            *(self.send("right", "/verify/check", verification_id=it, code=code) for _ in range(2))
        )
        assert sorted(status for status, _ in rights) == [200, 409], rights
        (token,) = [answer["token"] for status, answer in rights if status == 200]
        redeemed = [await self.send("redeem", "/verify/token/redeem", token=token, purpose=PURPOSE) for _ in range(2)]
        assert [status for status, _ in redeemed] == [200, 409], redeemed

    async def guess(self) -> None:
        """Send wrong codes at once until the verification is locked: it takes exactly as many as are allowed."""
        _, started, phone = await self.start()
        it, wrong = started["verification_id"], _another(await self.hear(phone))
        checks = [self.send("guess", "/verify/check", verification_id=it, code=wrong) for _ in range(CHECKS + 2)]
        statuses = Counter(status for status, _ in await asyncio.gather(*checks))
        assert statuses == {200: CHECKS, 429: 2}, statuses

    async def share_an_address(self) -> None:
        """Start calls at once from one address: exactly as many as are allowed."""
        number = next(self.numbers)
        address = f"5.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        starts = [self.start(client_ip=address) for _ in range(CALLS_PER_ADDRESS + 2)]
        answers = await asyncio.gather(*starts)
        statuses = Counter(status for status, *_ in answers)
        assert statuses == {201: CALLS_PER_ADDRESS, 429: 2}, answers

    async def behave(self) -> None:
        for act in itertools.cycle((self.verify, self.guess, self.share_an_address)):
            await act()
            await asyncio.sleep(0.1)


def _another(code: str) -> str:
    return f"{(int(code) + 1) % 10 ** len(code):0{len(code)}}"


async def test_a_rolling_restart_under_load_fails_no_request_and_keeps_every_limit_exact(
    machines: list[Machine], network: VirtualNetwork
) -> None:
    async with (
        Forwarder([machine.port for machine in machines]) as balancer,
        aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {API_KEY}"}, connector=aiohttp.TCPConnector(force_close=True)
        ) as http,
    ):
        users = Users(http, f"http://{balancer.address}", network)
        load = [asyncio.create_task(users.behave()) for _ in range(USERS)]
        try:
            for machine in machines:
                balancer.drained = {machine.port}
                restart = asyncio.create_task(asyncio.to_thread(machine.restart))
                done, _ = await asyncio.wait([restart, *load], return_when=asyncio.FIRST_COMPLETED)
                await restart
                for task in done:
                    task.result()
            balancer.drained = set()
            before = users.answers.total()
            while users.answers.total() < before + 50:
                await asyncio.wait(load, timeout=0.1)
                for task in load:
                    assert not task.done() or task.result()
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)

    logs = [(life / "log").read_text() for machine in machines for life in machine.lives]
    assert len(logs) == 2 * len(machines)
    assert not any("Traceback" in log for log in logs)
    assert users.answers["right 200"] > 20
