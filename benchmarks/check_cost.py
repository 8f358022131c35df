"""The cost of a check: CPU time per ``POST /verify/check``, compared with the floor of a plain FastAPI service.

Only the ratio of the two depends on the code alone; the times depend on the machine as well. It is printed,
and nothing here passes or fails by it. ``benchmarks/README.md`` explains the results.
"""

import argparse
import asyncio
import hashlib
import itertools
import os
import platform
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from redis.asyncio import Redis

from app.sandbox.embedded import EmbeddedServer
from app.store.connection import connect
from app.store.scripts import ScriptRunner
from app.store.verifications import RedisVerificationStore
from app.verification.channels import Channel
from app.verification.code import CodeDigester
from app.verification.keys import derive_key
from app.verification.model import Verification
from app.verification.phone import Phone
from app.verification.ports import NewCall
from benchmarks.load import Load, Session, UnexpectedAnswer, connections, drive, request
from benchmarks.server import Server
from tests.policies import make_policy
from tests.starting import start

API_KEY = "pvk_of-the-benchmark-which-opens-nothing-else"
CLIENT = "bench"
SECRET_KEY = "a secret key of the benchmark, known to all"  # noqa: S105 - it keeps nothing secret
PURPOSE = "login"
RIGHT, WRONG = "123456", "654321"
GUESSES = (WRONG, WRONG, WRONG, WRONG, RIGHT)  # the codes sent for each verification: as many as the policy allows

CONNECTIONS = 32
SEEDED_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Effort:
    """The extent of the measurement: ``sessions`` of five requests per round, for at most ``seconds``."""

    rounds: int
    sessions: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """The results of one round."""

    cpu_us: float
    latencies_ms: Sequence[float]
    requests_per_second: float

    def percentile(self, percent: int) -> float:
        """Return the latency of this quantile of the requests."""
        return statistics.quantiles(self.latencies_ms, n=100)[percent - 1]


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a measurement: requests to a server, compared with the subject ``against``."""

    name: str
    server: Server
    prepare: Callable[[int], Awaitable[list[Session]]]
    checks: bool = True
    against: str = ""
    rounds: list[Round] = field(default_factory=list)

    async def measure(self, sessions: int, seconds: float) -> Round:
        """Put one round of load on the server. Raise UnexpectedAnswer unless every response is correct."""
        prepared = await self.prepare(sessions)
        async with connections(self.server.port, CONNECTIONS) as opened:
            before = self.server.cpu_seconds()
            load = await drive(opened, prepared, within=seconds)
            used = self.server.cpu_seconds() - before
        if self.checks:
            _verify(self.name, load)
        return Round(
            cpu_us=used / len(load.bodies) * 1e6,
            latencies_ms=[latency * 1000 for latency in load.latencies],
            requests_per_second=len(load.bodies) / load.seconds,
        )

    def median(self, figure: Callable[[Round], float]) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(map(figure, self.rounds))


def _verify(name: str, load: Load) -> None:
    """Check that each verification got its wrong codes and then, once, the right one."""
    found = [sum(word in body for body in load.bodies) for word in (b'"verified":true', b'"verified":false')]
    expected = [load.sessions * GUESSES.count(code) for code in (RIGHT, WRONG)]
    if found != expected:
        msg = f"{name}: {found} answers were right and wrong codes, {expected} were expected"
        raise UnexpectedAnswer(msg)


class Seeds:
    """Creates verifications in the state that ``POST /verify/start`` leaves, each for another phone."""

    def __init__(self, redis: Redis) -> None:
        secret = SECRET_KEY.encode()
        self._redis = redis
        self._store = RedisVerificationStore(ScriptRunner(redis, timeout=5), phone_key=derive_key(secret, "phone"))
        self._digest = CodeDigester([secret]).digest(CLIENT, RIGHT)
        self._serials = itertools.count()

    async def checks_by_id(self, count: int) -> list[Session]:
        """Prepare checks by verification id."""
        return [_checks("/verify/check", verification_id=seed.id) for seed in await self._start(count)]

    async def checks_by_phone(self, count: int) -> list[Session]:
        """Prepare checks by phone."""
        started = await self._start(count)
        return [_checks("/verify/check", phone=seed.phone.e164, purpose=PURPOSE) for seed in started]

    async def checks_of_floor(self, count: int) -> list[Session]:
        """Prepare checks for the script of the floor."""
        keys = [f"floor:{serial}" for serial in itertools.islice(self._serials, count)]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hset(key, "code", RIGHT)
            await pipeline.execute()
        return [_checks("/check", verification_id=key) for key in keys]

    async def _start(self, count: int) -> list[Verification]:
        started: list[Verification] = []
        while missing := min(count - len(started), SEEDED_AT_ONCE):
            calls = [self._new_call(serial) for serial in itertools.islice(self._serials, missing)]
            answers = await asyncio.gather(*(start(self._store, call, make_policy()) for call in calls))
            started += [answer.verification for answer in answers]
        return started

    def _new_call(self, serial: int) -> NewCall:
        return NewCall(
            client=CLIENT,
            phone=Phone(f"+7912{serial:07d}"),
            purpose=PURPOSE,
            channel=Channel.VOICE,
            code_digest=self._digest,
            code_length=len(RIGHT),
            checks=5,
        )


def _checks(path: str, **names: str) -> Session:
    return [request("POST", path, body={"code": code, **names}, api_key=API_KEY) for code in GUESSES]


def _reads(path: str) -> Callable[[int], Awaitable[list[Session]]]:
    async def prepare(count: int) -> list[Session]:
        return [[request("GET", path, api_key=API_KEY)] * len(GUESSES)] * count

    return prepare


def _service(redis_url: str, **environment: str) -> Server:
    """Start the service as a user does, in sandbox mode but with an API key, so that authentication is measured."""
    return Server(
        ["app", "serve"],
        {
            "MODE": "sandbox",
            "REDIS_URL": redis_url,
            "SECRET_KEY": SECRET_KEY,
            "API_KEYS": f"{CLIENT}:{hashlib.sha256(API_KEY.encode()).hexdigest()}",
            "LIMIT_FAILED_CHECKS_PER_CLIENT": "10000000",  # counted like any other, but never reached
            **environment,
        },
    )


def _floor(redis_url: str) -> Server:
    options = ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning"]
    options += ["--no-access-log", "--no-proxy-headers", "--no-server-header"]
    return Server(["uvicorn", "benchmarks.floor:app", *options], {"REDIS_URL": redis_url})


def _subjects(redis_url: str, seeds: Seeds, stack: ExitStack) -> Iterator[Subject]:
    """Start the servers and return the subjects; the floor comes first."""
    floor = stack.enter_context(_floor(redis_url))
    service = stack.enter_context(_service(redis_url))
    quiet = stack.enter_context(_service(redis_url, LOG_LEVEL="warning"))
    check, bare = "the floor", "bare FastAPI route"
    yield Subject(check, floor, seeds.checks_of_floor, against=check)
    yield Subject("check by id", service, seeds.checks_by_id, against=check)
    yield Subject("check by id, LOG_LEVEL=warning", quiet, seeds.checks_by_id, against=check)
    yield Subject("check by phone", service, seeds.checks_by_phone, against=check)
    yield Subject(bare, floor, _reads("/bare"), checks=False, against=bare)
    yield Subject("GET /livez", service, _reads("/livez"), checks=False, against=bare)


async def measure(effort: Effort) -> list[Subject]:
    """Warm up every subject, then measure them in turns, so that other load of the machine affects all alike."""
    with ExitStack() as stack:
        redis_url = stack.enter_context(EmbeddedServer()).url
        async with connect(redis_url, timeout=5) as redis:
            subjects = list(_subjects(redis_url, Seeds(redis), stack))
            for subject in subjects:
                await subject.measure(effort.sessions // 4, effort.seconds / 4)
            for _ in range(effort.rounds):
                for subject in subjects:
                    subject.rounds.append(await subject.measure(effort.sessions, effort.seconds))
                    print(".", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
            return subjects


def report(subjects: Sequence[Subject]) -> str:
    """Return the medians as a table."""
    costs = {subject.name: [found.cpu_us for found in subject.rounds] for subject in subjects}
    lines = [f"{'':32}{'CPU µs':>8}{'ratio':>8}{'p50 ms':>8}{'p99 ms':>8}{'req/s':>8}"]
    for subject in subjects:
        p50, p99, rate = (
            subject.median(figure)
            for figure in (
                lambda found: found.percentile(50),
                lambda found: found.percentile(99),
                lambda found: found.requests_per_second,
            )
        )
        # Per round, because the machine changes from one round to the next.
        ratio = statistics.median(
            mine / other for mine, other in zip(costs[subject.name], costs[subject.against], strict=True)
        )
        cost = statistics.median(costs[subject.name])
        lines.append(f"{subject.name:32}{cost:8.0f}{ratio:8.2f}{p50:8.1f}{p99:8.1f}{rate:8.0f}")
    return "\n".join(lines)


def main() -> None:
    """Measure with the options of the command line, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="number of rounds; medians are shown")
    parser.add_argument("--quick", action="store_true", help="short rounds: a quick look, not a measurement")
    options = parser.parse_args()
    if not Path("/proc/self/stat").exists():
        sys.exit("The processor time of a server is read from /proc: this benchmark needs Linux.")

    effort = Effort(3, 100, 0.5) if options.quick else Effort(options.rounds, 400, 1.5)
    subjects = uvloop.run(measure(effort))
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {CONNECTIONS} connections, ", end="")
    print(f"medians of {effort.rounds} x {effort.sessions * len(GUESSES)} requests; CPU is that of the server alone")
    print(report(subjects))


if __name__ == "__main__":
    main()
