"""What the service costs: processor time per request, next to the floor that a plain service stands on.

Only the ratios of one run say something about the code; the times say as much about the machine. So they are printed,
and nothing here passes or fails by them. ``benchmarks/README.md`` says how to read it.
"""

import argparse
import asyncio
import gc
import hashlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from app.sandbox.embedded import EmbeddedServer
from app.tokens import generate_keys
from benchmarks.bench_rows import API_KEY, CONNECTIONS, Bench, Figures, Verification, percentile
from benchmarks.load import Load, Session, UnexpectedAnswer, connections, pace, saturate
from benchmarks.provider_stub import ProviderStub
from benchmarks.server import Server
from benchmarks.worker import PROVIDER_URL

CLIENT = "bench"
RESULTS = Path(__file__).parent / "results" / "last.json"

_SLOW_PROVIDER = 0.2  # seconds
_WAITING_STARTS = 256
_STARTS_PER_SECOND = 100


def _require(load: Load, word: bytes, name: str) -> None:
    """Make sure that the work was done. Raises UnexpectedAnswer."""
    if not all(word in body for body in load.bodies):
        msg = f"{name}: {word!r} is missing in {next(body for body in load.bodies if word not in body)!r}"
        raise UnexpectedAnswer(msg)


async def _measure_round(bench: Bench, size: int) -> None:
    """Measure every row once, all of it through the public API."""
    right, wrong = b'"verified":true', b'"verified":false'
    floor, limit = bench.floor, bench.limit
    await bench.saturate("floor", await bench.floor_checks(2 * size), floor)
    await bench.saturate("limit", await bench.floor_checks(2 * size), limit)
    started: list[Verification] = []
    await bench.saturate("start", list(bench.starts(size, started)))
    await bench.saturate("start, with a key", list(bench.starts(size, started, with_key=True)))
    _require(await bench.saturate("check, wrong", [bench.wrong_check(item) for item in started]), wrong, "wrong")
    by_phone = [bench.wrong_check_by_phone(item) for item in started]
    _require(await bench.saturate("check, wrong, by phone", by_phone), wrong, "by phone")
    await bench.saturate("read", [bench.read(item) for item in started])
    checked = await bench.saturate("check, right", [bench.right_check(item) for item in started])
    _require(checked, right, "right")
    await bench.saturate("flow", list(bench.flows(size)))


async def _measure_latencies(bench: Bench) -> Figures:
    """Measure each row at half of its top throughput, and the starts with a slow provider."""
    await bench.pace("floor", await bench.floor_checks(bench.paced_count("floor")), bench.floor)
    await bench.pace("limit", await bench.floor_checks(bench.paced_count("limit")), bench.limit)
    started: list[Verification] = []
    await bench.pace("start", list(bench.starts(bench.paced_count("start"), started)))
    keyed = list(bench.starts(bench.paced_count("start, with a key"), started, with_key=True))
    await bench.pace("start, with a key", keyed)
    missing = bench.paced_count("check, wrong") // 3 - len(started)
    if missing > 0:
        async with connections(bench.service.port, CONNECTIONS) as opened:
            await saturate(opened, list(bench.starts(missing, started)))

    def some(name: str, make: Callable[[Verification], Session]) -> list[Session]:
        return [make(item) for item, _ in zip(itertools.cycle(started), range(bench.paced_count(name)), strict=False)]

    await bench.pace("check, wrong", some("check, wrong", bench.wrong_check)[: 3 * len(started)])
    await bench.pace("read", some("read", bench.read))
    await bench.pace("check, right", [bench.right_check(item) for item in started])

    bench.stub.delay = _SLOW_PROVIDER
    async with connections(bench.service.port, 8 * CONNECTIONS) as opened:
        for seconds in (1, 5):  # the first opens as many connections to the provider as are needed
            bench.stub.delays.clear()
            load = await pace(
                opened, list(bench.starts(seconds * _STARTS_PER_SECOND, [])), per_second=_STARTS_PER_SECOND
            )
    bench.stub.delay = 0.0
    async with connections(bench.floor.port, CONNECTIONS) as opened:
        checks = await bench.floor_checks(5 * _STARTS_PER_SECOND)
        floor = await pace(opened, checks, per_second=_STARTS_PER_SECOND)
    own = percentile(load, 99) - statistics.median(bench.stub.delays) * 1000
    return {
        "slow_provider_p99_own_ms": own,
        "slow_provider_p99_floors": own / percentile(floor, 99),
    }


async def _measure_waiting_starts(bench: Bench, size: int) -> Figures:
    """Measure what checks cost while so many starts wait for the provider, against checks alone before and after.

    In processor time: that of the clock says as much about what else the machine does.
    """
    slowed = []
    for _ in range(5):
        started: list[Verification] = []
        async with connections(bench.service.port, CONNECTIONS) as opened:
            await saturate(opened, list(bench.starts(2 * size, started)))
        checks = [bench.wrong_check(item) for item in started]
        await asyncio.sleep(1.5)  # calls are followed a second after they were placed: from now on, all the time
        await bench.saturate("checks", checks)
        bench.stub.delay = 4.0
        async with connections(bench.service.port, _WAITING_STARTS) as waiting:
            tasks = [
                asyncio.ensure_future(session(connection))
                for session, connection in zip(bench.starts(_WAITING_STARTS, []), waiting, strict=True)
            ]
            await asyncio.sleep(1.5)  # all of them have been written to the provider
            await bench.saturate("checks", checks)
            if any(task.done() for task in tasks):
                raise UnexpectedAnswer(f"a start did not wait for the provider: {tasks}")
            await asyncio.gather(*tasks)
        bench.stub.delay = 0.0
        await bench.saturate("checks", checks)
        before, beside, after = (item.cpu_us for item in bench.rows.pop("checks").rounds)
        slowed.append(2 * beside / (before + after) - 1)
    return {"checks_slowed_by_256_waiting_starts_percent": statistics.median(slowed) * 100}


def _settings(redis_url: str) -> Mapping[str, str]:
    """Return the settings of production, with limits that are counted like any others but never reached."""
    return {
        "REDIS_URL": redis_url,
        "REDIS_TIMEOUT_SECONDS": "10",  # a shared machine may pause for longer than the default
        "SECRET_KEY": "a secret key of the benchmark, known to all",
        "TOKEN_KEYS": generate_keys(),
        "API_KEYS": f"{CLIENT}:{hashlib.sha256(API_KEY.encode()).hexdigest()}",
        "PLUSOFON_USER_ID": "1",
        "PLUSOFON_ACCESS_TOKEN": "token-of-the-benchmark",
        "PLUSOFON_MAX_CONNECTIONS": "300",
        "LOG_FORMAT": "json",
        "LIMIT_CALLS_PER_CLIENT": "10000000",
        "LIMIT_CALLS_PER_DAY": "10000000",
        "LIMIT_FAILED_CHECKS_PER_CLIENT": "10000000",
    }


def _floor_server(module: str, redis_url: str) -> Server:
    options = ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning"]
    options += ["--no-access-log", "--no-proxy-headers", "--no-server-header"]
    return Server(["uvicorn", f"benchmarks.{module}:app", *options], {"REDIS_URL": redis_url})


@asynccontextmanager
async def open_bench() -> AsyncIterator[tuple[Bench, str]]:
    """Start the servers and the provider stub; yield them with the URL of Redis."""
    async with AsyncExitStack() as stack:
        redis_url = stack.enter_context(EmbeddedServer()).url
        redis = await stack.enter_async_context(Redis.from_url(redis_url))
        stub = await stack.enter_async_context(ProviderStub())
        environment = {**_settings(redis_url), PROVIDER_URL: stub.url}
        bench = Bench(
            redis,
            floor=stack.enter_context(_floor_server("floor", redis_url)),
            limit=stack.enter_context(_floor_server("limit", redis_url)),
            service=stack.enter_context(Server(["benchmarks.worker"], environment)),
            stub=stub,
        )
        yield bench, redis_url


async def _measure_workers(bench: Bench, redis_url: str, size: int) -> Figures:
    """Measure starts over TLS, and the checks of two workers against those of one: two servers, in turns."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stub = await stack.enter_async_context(ProviderStub(folder))
        environment = {
            **_settings(redis_url),
            "PLUSOFON_BASE_URL": stub.url,
            "OUTBOUND_CA_FILE": str(stub.ca_file),
        }
        one, two = [
            Bench(
                bench.redis,
                floor=bench.floor,
                limit=bench.limit,
                service=stack.enter_context(Server(["app", "serve"], {**environment, "WORKERS": str(workers)})),
                stub=stub,
                numbers=bench.numbers,
                workers=workers,
            )
            for workers in (1, 2)
        ]
        await asyncio.sleep(1)  # the second worker has started too
        for number in range(6):
            for other in (one, two):
                started: list[Verification] = []
                await other.saturate("start over TLS", list(other.starts(size, started)))
                await other.saturate("floor", await other.floor_checks(size), other.floor)
                await other.saturate("check", [other.wrong_check(item) for item in started] * 2)
                if not number:
                    other.rows.clear()  # to warm up
        return {
            "start_over_tls_ratio": one.rows["start over TLS"].ratio(one.rows["floor"]),
            "check_cpu_two_workers_over_one": two.rows["check"].ratio(one.rows["check"]),
        }


async def _measure_journal(bench: Bench, redis_url: str, size: int) -> Figures:
    """Measure flows with the journal of attempts against flows without one: two servers, in turns."""
    with ExitStack() as stack:
        kept, none = [
            Bench(
                bench.redis,
                floor=bench.floor,
                limit=bench.limit,
                service=stack.enter_context(
                    Server(
                        ["benchmarks.worker"],
                        {**_settings(redis_url), PROVIDER_URL: bench.stub.url, "JOURNAL_DAYS": days},
                    )
                ),
                stub=bench.stub,
                numbers=bench.numbers,
            )
            for days in ("30", "0")
        ]
        for number in range(6):
            for each in (kept, none):
                await each.saturate("flow", list(each.flows(size)))
                if not number:
                    each.rows.clear()  # to warm up
    with_it, without = kept.rows["flow"], none.rows["flow"]
    return {
        "flow_cpu_with_journal_over_without": with_it.ratio(without),
        "flow_redis_us_with_journal_over_without": with_it.median(lambda item: item.redis_us)
        / without.median(lambda item: item.redis_us),
    }


async def measure(rounds: int, size: int) -> dict[str, Any]:
    """Warm up, then measure in turns: what else the machine does then disturbs all rows alike."""
    gc.disable()  # of the load client: its pauses would be the servers' latencies
    async with open_bench() as (bench, redis_url):
        await _measure_round(bench, max(size // 4, 32))
        bench.rows.clear()
        for _ in range(rounds):
            await _measure_round(bench, size)
            print(".", end="", file=sys.stderr, flush=True)
        others = await _measure_latencies(bench)
        print("p", end="", file=sys.stderr, flush=True)
        others |= await _measure_waiting_starts(bench, size)
        others |= await _measure_workers(bench, redis_url, size)
        others |= await _measure_journal(bench, redis_url, size)
        print(file=sys.stderr)
        floor = bench.rows["floor"]
        others["rss_mb"] = bench.service.rss_mb()
        others["redis_us_of_a_flow_in_floors_cpu"] = bench.rows["flow"].median(
            lambda item: item.redis_us
        ) / floor.median(lambda item: item.cpu_us)
        return {
            "commit": _commit(),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}",
            "rows": {name: row.figures(floor) for name, row in bench.rows.items()},
            "others": {name: round(value, 3) for name, value in others.items()},
        }


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 - found as the shell finds it
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return answer.stdout.strip() or "unknown"


_COLUMNS = ("cpu_us", "ratio", "redis_us", "commands", "per_second", "p50_ms", "p99_ms", "client_share")


def report(found: Mapping[str, Any], last: Mapping[str, Any] | None) -> str:
    """Lay the figures out as a table, with the change of each ratio against the last result that was kept."""
    lines = [f"{found['machine']}, {CONNECTIONS} connections, commit {found['commit']}"]
    lines.append(f"{'':24}" + "".join(f"{name:>13}" for name in _COLUMNS) + f"{'ratio was':>13}")
    for name, figures in found["rows"].items():
        before = last["rows"].get(name, {}).get("ratio", "") if last else ""
        cells = "".join(f"{figures.get(column, ''):>13}" for column in _COLUMNS)
        lines.append(f"{name:24}{cells}{before:>13}")
    for name, value in found["others"].items():
        before = f"   (was {last['others'].get(name)})" if last else ""
        lines.append(f"{name:48}{value:>10}{before}")
    return "\n".join(lines)


def main() -> None:
    """Measure as much as the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the medians are shown")
    parser.add_argument("--quick", action="store_true", help="two short rounds: a look, not a measurement")
    parser.add_argument("--keep", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args()
    if not Path("/proc/self/stat").exists():
        sys.exit("The processor time of a server is read from /proc: this benchmark needs Linux.")
    last = json.loads(RESULTS.read_text()) if RESULTS.exists() else None
    found = uvloop.run(measure(2, 150) if options.quick else measure(options.rounds, 600))
    print(report(found, last))
    if options.keep:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
