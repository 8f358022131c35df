"""The requests of the benchmark, the load with which a server is measured, and the figures of each row."""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from redis.asyncio import Redis

from benchmarks.load import Connection, Load, Session, connections, pace, request, requests, saturate
from benchmarks.provider_stub import ProviderStub
from benchmarks.server import Server

API_KEY = "pvk_of-the-benchmark-which-opens-nothing-else"
CONNECTIONS = 32

_PACED_SECONDS = 3.0
_PURPOSE = "login"
_RANGES = 10_000  # of a thousand neighbouring numbers each: the fraud guard judges a range from 20 calls on

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Verification:
    """A started verification, as its client knows it, and the code that the person heard."""

    id: str
    phone: str
    code: str

    @property
    def wrong_code(self) -> str:
        """A code of the same length that is not the right one."""
        return f"{(int(self.code) + 1) % 10 ** len(self.code):0{len(self.code)}d}"


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one row."""

    cpu_us: float  # of the server's processes, per request
    redis_us: float  # processor time of Redis, per request
    commands: float  # that Redis ran, those inside scripts included, per request
    per_second: float
    client_share: float  # of a core, taken by the load client and the provider stub


@dataclass(slots=True)
class Row:
    """A kind of request: its rounds under saturation, and its latencies under half of that load."""

    name: str
    per_session: int = 1  # requests in a session
    rounds: list[Round] = field(default_factory=list)
    paced: Load | None = None

    def median(self, figure: Callable[[Round], float]) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(map(figure, self.rounds))

    def ratio(self, floor: "Row") -> float:
        """Return the median ratio to the floor, round by round: a machine is not the same from one to the next."""
        return statistics.median(a.cpu_us / b.cpu_us for a, b in zip(self.rounds, floor.rounds, strict=True))

    def figures(self, floor: "Row") -> Figures:
        """Return what is reported."""
        found = {
            "cpu_us": self.median(lambda item: item.cpu_us),
            "ratio": self.ratio(floor),
            "redis_us": self.median(lambda item: item.redis_us),
            "commands": self.median(lambda item: item.commands),
            "per_second": self.median(lambda item: item.per_second),
            "client_share": self.median(lambda item: item.client_share),
        }
        if self.paced:
            found |= {"p50_ms": percentile(self.paced, 50), "p99_ms": percentile(self.paced, 99)}
        return {name: round(value, 3) for name, value in found.items()}


def percentile(load: Load, percent: int) -> float:
    """Return the latency in ms below which this share of the sessions stayed."""
    return statistics.quantiles(load.latencies, n=100)[percent - 1] * 1000


class Bench:
    """The servers under measurement, the load on them, and what it found."""

    def __init__(
        self,
        redis: Redis,
        *,
        floor: Server,
        limit: Server,
        service: Server,
        stub: ProviderStub,
        numbers: Iterator[int] | None = None,
        workers: int = 1,
    ) -> None:
        self.redis = redis
        self.floor = floor
        self.limit = limit
        self.service = service
        self.stub = stub
        self.numbers = numbers or itertools.count()  # of the phones, each called once
        self.rows: dict[str, Row] = {}
        self._connections = workers * CONNECTIONS  # the more of one worker, the more of its commands share a write

    # --- Sessions ---------------------------------------------------------------------------------------------

    async def floor_checks(self, count: int) -> list[Session]:
        """Prepare checks for the script of the floor."""
        keys = [f"floor:{next(self.numbers)}" for _ in range(count)]
        async with self.redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hset(key, "code", "123456")
                pipeline.expire(key, 300)
            await pipeline.execute()
        return [requests(_check("/check", code="654321", verification_id=key)) for key in keys]

    def starts(self, count: int, started: list[Verification], *, with_key: bool = False) -> Iterator[Session]:
        """Prepare starts, each of another phone; what they started is added to ``started``."""
        for _ in range(count):
            yield self._start(started, with_key=with_key)

    def flows(self, count: int) -> Iterator[Session]:
        """Prepare whole flows: a start, a wrong check and the right check."""
        for _ in range(count):

            async def flow(connection: Connection) -> Sequence[bytes]:
                started: list[Verification] = []
                bodies = [*await self._start(started)(connection)]
                for session in (self.wrong_check(started[0]), self.right_check(started[0])):
                    bodies += await session(connection)
                return bodies

            yield flow

    def wrong_check(self, verification: Verification) -> Session:
        """Prepare a check that is evaluated and wrong."""
        return requests(_check(code=verification.wrong_code, verification_id=verification.id))

    def wrong_check_by_phone(self, verification: Verification) -> Session:
        """Prepare the same by phone and purpose."""
        return requests(_check(code=verification.wrong_code, phone=verification.phone, purpose=_PURPOSE))

    def right_check(self, verification: Verification) -> Session:
        """Prepare the check that verifies."""
        return requests(_check(code=verification.code, verification_id=verification.id))

    def read(self, verification: Verification) -> Session:
        """Prepare a reading of the state."""
        return requests(request("GET", f"/verify/{verification.id}", api_key=API_KEY))

    def _start(self, started: list[Verification], *, with_key: bool = False) -> Session:
        number = next(self.numbers)
        phone = f"+7912{number % _RANGES:04d}{number // _RANGES:03d}"
        body = {"phone": phone, "purpose": _PURPOSE, "client_ip": _public_address(number)}
        key = str(UUID(int=number)) if with_key else ""
        payload = request("POST", "/verify/start", body=body, api_key=API_KEY, idempotency_key=key)

        async def start(connection: Connection) -> Sequence[bytes]:
            answer = await connection.send(payload)
            verification_id = json.loads(answer)["verification_id"]
            started.append(Verification(verification_id, phone, self.stub.codes.pop(phone[2:])))
            return [answer]

        return start

    # --- Measuring --------------------------------------------------------------------------------------------

    async def saturate(self, name: str, sessions: Sequence[Session], server: Server | None = None) -> Load:
        """Measure a round of a row, at as many requests as the server takes."""
        server = server or self.service
        async with connections(server.port, self._connections) as opened:
            before, redis_before, client_before = server.cpu_seconds(), await self._redis_load(), time.process_time()
            load = await saturate(opened, sessions)
            client = time.process_time() - client_before
            used = server.cpu_seconds() - before
            redis_after = await self._redis_load()
        row = self.rows.setdefault(name, Row(name))
        count = len(sessions)
        row.rounds.append(
            Round(
                cpu_us=used / count * 1e6,
                redis_us=(redis_after[0] - redis_before[0]) / count * 1e6,
                commands=(redis_after[1] - redis_before[1]) / count,
                per_second=count / load.seconds,
                client_share=client / load.seconds,
            )
        )
        return load

    async def pace(self, name: str, sessions: Sequence[Session], server: Server | None = None) -> None:
        """Measure the latencies of a row, at half of what the server took under saturation."""
        row = self.rows[name]
        rate = row.median(lambda item: item.per_second) / 2
        async with connections((server or self.service).port, 2 * CONNECTIONS) as opened:  # the floor's pool has 100
            row.paced = await pace(opened, sessions, per_second=rate)

    def paced_count(self, name: str) -> int:
        """Return how many sessions half of a row's top throughput takes."""
        return int(self.rows[name].median(lambda item: item.per_second) / 2 * _PACED_SECONDS)

    async def _redis_load(self) -> tuple[float, float]:
        """Return the processor time that Redis has used, in seconds, and how many commands it has run."""
        cpu = await self.redis.info("cpu")
        commands = await self.redis.info("commandstats")
        ran = sum(stats["calls"] for name, stats in commands.items() if name != "cmdstat_info")
        return cpu["used_cpu_user"] + cpu["used_cpu_sys"], ran


def _check(path: str = "/verify/check", **fields: str) -> bytes:
    return request("POST", path, body=fields, api_key=API_KEY)


def _public_address(number: int) -> str:
    return f"198.{51 + number % 40}.{number // 250 % 250}.{1 + number % 250}"
